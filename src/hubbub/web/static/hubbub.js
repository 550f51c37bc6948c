/**
 * The whole page: one WebSocket, one list, three fields.
 *
 * It speaks hubbub's plain dialect. A text frame is a message; everyone in the room receives it verbatim, the
 * sender included, so the list shows what the room has seen, in the room's order. The page sends the line
 * `name: text`, which any other plain client can read. A name is a courtesy, not an identity.
 *
 * Two rules: what comes from the network reaches the document through textContent only; and there is one
 * socket, so handlers of an older one find that it isn't `socket` any more and do nothing.
 */

const HISTORY = 50; // messages asked for on every connection
const SHOWN_MAX = 1000; // messages kept in the document
const MESSAGE_BYTES_MAX = 65536; // the server's limit, in UTF-8, name included
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 30_000;
const STABLE_MS = 5000; // a connection that lived this long starts the back-off afresh
const CONNECT_MS_MAX = 10_000;
const NAME_HUES = 10; // the classes .h0 to .h9
const CLOSED_FOR_GOOD = [1000, 1008]; // ended on purpose, not allowed: coming back wouldn't help
const REASONS = { 1001: 'server going away', 1006: 'no connection', 1008: 'not allowed', 1009: 'message too large',
  1011: 'server error', 1013: 'try again later' };

/** @type {(id: string) => any} */
const $ = (id) => document.getElementById(id);
const [roomField, nameField, log, messages, box, notice] = ['room', 'nickname', 'log', 'messages', 'text', 'notice'].map($);
const server = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}`;
const clock = new Intl.DateTimeFormat([], { hour: '2-digit', minute: '2-digit' });

let room = '';
let nickname = '';
/** @type {WebSocket | null} */
let socket = null;
let attempts = 0; // since the last stable connection
let retryTimer = 0;
/** Sent, and not come back yet: plain publishing has no other acknowledgement. @type {{text: string, line: string}[]} */
let unconfirmed = [];
/** Received, and not shown yet. @type {{data: string | ArrayBuffer, at: Date}[]} */
let arrived = [];
let following = true; // the reader is at the end of the list

// ── The connection ──

/** @param {'connecting' | 'connected' | 'waiting' | 'closed'} state */
function showState(state, text, countdown = '', why = '') {
  $('connection').dataset.state = state;
  if ($('state').textContent !== text) $('state').textContent = text; // a screen reader speaks at each change
  $('countdown').textContent = countdown;
  $('why').textContent = why;
  $('retry').hidden = !room || !['waiting', 'closed'].includes(state);
  $('send').disabled = state !== 'connected';
}

function connect() {
  disconnect();
  showState('connecting', 'Connecting…');
  const ws = new WebSocket(`${server}/chat/${encodeURIComponent(room)}?history=${HISTORY}`);
  const tooLong = setTimeout(() => ws.close(), CONNECT_MS_MAX);
  let stable = 0;
  socket = ws;
  ws.binaryType = 'arraybuffer';
  ws.onopen = () => {
    clearTimeout(tooLong);
    if (ws !== socket) return;
    stable = setTimeout(() => { attempts = 0; }, STABLE_MS);
    // The history comes again with every connection. Plain messages carry no positions, so what was missed
    // can't be told from what is shown already: start the list over rather than show things twice.
    startList();
    showState('connected', 'Connected');
  };
  ws.onmessage = ({ data }) => { if (ws === socket) receive(data); };
  ws.onclose = ({ code, reason }) => {
    clearTimeout(tooLong);
    clearTimeout(stable);
    if (ws === socket) ended(code, reason);
  };
}

/** Forget the present socket and any planned attempt. */
function disconnect() {
  clearTimeout(retryTimer);
  const ws = socket;
  socket = null;
  ws?.close();
  giveBack();
}

/** The server or the network ended the connection: stop, or come back after a while. */
function ended(code, reason) {
  socket = null;
  giveBack();
  const why = `${code} ${reason || REASONS[code] || ''}`.trim();
  if (CLOSED_FOR_GOOD.includes(code)) {
    showState('closed', 'Closed', '', why);
    return;
  }
  // Full jitter: after a restart, clients come back spread over the whole span and not in waves.
  const due = performance.now() + Math.random() * Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** attempts++);
  const tick = () => {
    const left = due - performance.now();
    if (left <= 0) return connect();
    showState('waiting', 'Reconnecting', `in ${Math.ceil(left / 1000)} s`, why);
    retryTimer = setTimeout(tick, Math.min(left, 250));
  };
  tick();
}

/** What was sent and didn't come back may be lost: put it into the box again and let its author decide. */
function giveBack() {
  if (!unconfirmed.length) return;
  box.value = [...unconfirmed.map(({ text }) => text), box.value].filter(Boolean).join('\n');
  unconfirmed = [];
  notice.textContent = 'The connection ended before this came back. See whether it arrived before you send it again.';
}

// ── The list ──

function startList() {
  const item = document.createElement('li');
  item.className = 'joined';
  item.textContent = `You joined ${room} at ${clock.format(new Date())}. First, what the room remembers.`;
  messages.replaceChildren(item);
  arrived = [];
  follow();
  log.setAttribute('aria-busy', 'true'); // the history is for the eye; what comes after it is read aloud
  setTimeout(() => log.removeAttribute('aria-busy'), 1000);
}

/** Take a frame. They are shown every 16 ms, so a busy room costs one layout for many messages. */
function receive(data) {
  if (data === unconfirmed[0]?.line) unconfirmed.shift();
  if (!arrived.length) setTimeout(showArrived, 16);
  arrived.push({ data, at: new Date() });
  if (arrived.length > 2 * SHOWN_MAX) arrived = arrived.slice(-SHOWN_MAX); // a sleeping tab's timers are slow
}

function showArrived() {
  if (!arrived.length) return;
  let above = messages.lastElementChild;
  messages.append(...arrived.map(({ data, at }) => (above = render(data, at, above))));
  arrived = [];
  while (messages.childElementCount > SHOWN_MAX) messages.firstElementChild.remove();
  if (following) follow();
  else $('newer').hidden = false;
}

/** One message as a list item; `above` is the item before it. */
function render(data, at, above) {
  const [item, text, time] = ['li', 'span', 'time'].map((tag) => document.createElement(tag));
  const binary = typeof data !== 'string';
  const [, name, words] = (!binary && /^([^\s:][^:\n]{0,31}): ([^]*)$/.exec(data)) || [];
  if (name) {
    const who = document.createElement('bdi');
    who.className = `name h${hue(name)}`;
    who.textContent = who.title = name;
    item.append(who);
    item.dataset.name = name;
    item.classList.toggle('own', name === nickname);
    item.classList.toggle('again', name === above?.dataset.name);
  }
  item.classList.toggle('binary', binary);
  text.className = 'text';
  text.dir = 'auto';
  text.textContent = binary ? `[binary, ${data.byteLength} bytes]` : words ?? data;
  time.dateTime = at.toISOString();
  time.title = `Arrived here at ${at.toLocaleTimeString()}`;
  time.textContent = clock.format(at);
  item.append(text, time);
  return item;
}

/** The same name has the same colour in every window (FNV-1a). */
function hue(name) {
  let hash = 0x811c9dc5;
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
  return (hash >>> 0) % NAME_HUES;
}

function follow() {
  following = true;
  $('newer').hidden = true;
  log.scrollTop = log.scrollHeight;
}

// ── What people do ──

function send() {
  const text = box.value.trim();
  const line = `${nickname}: ${text}`;
  const bytes = new TextEncoder().encode(line).length;
  if (!text) return;
  if (bytes > MESSAGE_BYTES_MAX) {
    notice.textContent = `Too long to send: ${bytes} bytes with your name, and the limit is ${MESSAGE_BYTES_MAX}.`;
  } else if (socket?.readyState !== WebSocket.OPEN) {
    notice.textContent = 'Not connected. Your text stays here until it can be sent.';
  } else {
    socket.send(line);
    unconfirmed.push({ text, line });
    box.value = notice.textContent = '';
    follow();
  }
}

/** What is wrong with a room's name, or ''. Browsers resolve the paths `.` and `..`, so they can't be rooms here. */
function roomFault(name) {
  const good = /^(?: |[^\p{C}\p{Z}])+$/u.test(name) && [...name].length <= 255 && !/^\.\.?$/.test(name);
  return good ? '' : 'A room’s name is 1 to 255 printable characters, and not “.” or “..”.';
}

function enterRoom(name) {
  const fault = roomFault(name);
  $('room-fault').textContent = fault;
  roomField.setAttribute('aria-invalid', String(Boolean(fault)));
  roomField.value = name;
  if (fault && !room) showState('closed', 'Not connected', '', 'choose a room');
  if (fault || name === room) return;
  if (roomInAddress() !== name) history[room ? 'pushState' : 'replaceState'](null, '', `#${encodeURIComponent(name)}`);
  room = name;
  remember('room', name);
  document.title = `${name} · hubbub`;
  messages.replaceChildren();
  arrived = [];
  attempts = 0;
  connect();
}

function roomInAddress() {
  const hash = location.hash.slice(1);
  try { return decodeURIComponent(hash); } catch { return hash; }
}

/** No colon and no control characters, so that `name: text` can be read back. */
function takeName(name) {
  nickname = name.replace(/[:\p{C}]/gu, '').trim() || `guest-${Math.floor(1000 + Math.random() * 9000)}`;
  nameField.value = nickname;
  remember('nickname', nickname);
  for (const item of messages.children) item.classList.toggle('own', item.dataset.name === nickname);
}

/** localStorage may be forbidden; then nothing is remembered, and that is all. */
function remember(key, value) {
  try { localStorage.setItem(`hubbub.${key}`, value); } catch { /* not here */ }
}

function remembered(key) {
  try { return localStorage.getItem(`hubbub.${key}`); } catch { return null; }
}

$('place').addEventListener('submit', (event) => { // Enter in either field; their own `change` came first
  event.preventDefault();
  if (!roomFault(roomField.value)) box.focus();
});
roomField.addEventListener('change', () => enterRoom(roomField.value.trim()));
nameField.addEventListener('change', () => takeName(nameField.value));
$('compose').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
box.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
box.addEventListener('input', () => { notice.textContent = ''; });
$('newer').addEventListener('click', follow);
$('retry').addEventListener('click', connect);
log.addEventListener('scroll', () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  if (following) $('newer').hidden = true;
});
new ResizeObserver(() => { if (following) follow(); }).observe(log);
addEventListener('hashchange', () => { if (location.hash) enterRoom(roomInAddress()); });
addEventListener('online', () => { if ($('connection').dataset.state === 'waiting') connect(); });

$('snippet').textContent = `const ws = new WebSocket('${server}/chat')
ws.onmessage = e => console.log(e.data)
ws.onopen = () => ws.send('hello')`;
takeName(remembered('nickname') ?? '');
enterRoom(roomInAddress() || remembered('room') || 'chat'); // as the server calls the room of /chat
