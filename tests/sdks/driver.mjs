// One client of npm's `centrifuge`, in Node (node.mjs) or in a page of Chromium (chromium.py). driver.py is its
// twin for the Python SDK: the same commands, answers and events, described in sdk.py.

const short = { minResubscribeDelay: 50, maxResubscribeDelay: 50 };

function place(context) {
  const { offset, epoch } = context.streamPosition ?? {};
  return context.streamPosition ? { offset, epoch } : null;
}

function person({ client, user, connInfo, chanInfo }) {
  return { client, user, ...(connInfo && { info: connInfo }), ...(chanInfo && { room_info: chanInfo }) };
}

function publication({ data, offset, info, tags }) {
  return { data, ...(offset && { offset }), ...(info && { info: person(info) }), ...(tags && { tags }) };
}

function arrival({ recoverable, positioned, recovered, wasRecovering, data, ...context }) {
  return {
    position: place(context), recoverable, positioned, recovered, was_recovering: wasRecovering,
    ...(data !== undefined && { data }),
  };
}

function fault(error) {
  return { code: error?.code ?? 0, message: error?.message ?? String(error) };
}

/**
 * Make the function that carries out a command.
 * @param {Function} Centrifuge the SDK's client
 * @param {(line: object) => void} tell takes answers and events
 */
export function makeDriver(Centrifuge, tell) {
  let client;

  // What settles when the client or a subscription has arrived, or has given up for good.
  function settled(emitter, arrived, over, start) {
    return new Promise((resolve, reject) => {
      const leave = () => emitter.off(arrived, yes).off(over, no);
      const yes = context => { leave(); resolve(context); };
      const no = ({ code, reason }) => { leave(); reject({ code, message: reason }); };
      emitter.on(arrived, yes).on(over, no);
      start();
    });
  }

  // What the application answers when it is asked: one after the other, the last of them for ever; null is a failure.
  function inTurn(event, values) {
    const left = [...values];
    return async () => {
      tell(event);
      const value = left.length > 1 ? left.shift() : left[0];
      if (value === null) throw new Error('the application has nothing to say');
      return value;
    };
  }

  function subscription(room, { states, tokens, ...options }) {
    if (states) options.getState = inTurn({ event: 'state_asked', room }, states);
    if (tokens) options.getToken = inTurn({ event: 'token_asked', room }, tokens);
    const made = client.newSubscription(room, { ...short, ...options });
    made.on('subscribing', ({ code, reason }) => tell({ event: 'subscribing', room, code, reason }));
    made.on('unsubscribed', ({ code, reason }) => tell({ event: 'unsubscribed', room, code, reason }));
    made.on('subscribed', context => tell({ event: 'subscribed', room, ...arrival(context) }));
    made.on('publication', context => tell({ event: 'publication', room, ...publication(context) }));
    made.on('join', ({ info }) => tell({ event: 'join', room, ...person(info) }));
    made.on('leave', ({ info }) => tell({ event: 'leave', room, ...person(info) }));
    made.on('error', ({ error }) => tell({ event: 'error', room, ...fault(error) }));
    return made;
  }

  // In rooms that the server has subscribed it to, the events are the client's own.
  function ofServer(made) {
    const told = (event, { channel: room }, more) => tell({ event, room, by_server: true, ...more });
    made.on('subscribing', context => told('subscribing', context));
    made.on('unsubscribed', context => told('unsubscribed', context));
    made.on('subscribed', context => told('subscribed', context, arrival(context)));
    made.on('publication', context => told('publication', context, publication(context)));
    made.on('join', context => told('join', context, person(context.info)));
    made.on('leave', context => told('leave', context, person(context.info)));
    return made;
  }

  const commands = {
    async open() {},  // there is a page now
    async connect({ url, options: { retry_seconds, tokens, ...options } }) {
      const delay = retry_seconds * 1000;
      if (tokens) options.getToken = inTurn({ event: 'token_asked' }, tokens);
      client ??= ofServer(new Centrifuge(url, { minReconnectDelay: delay, maxReconnectDelay: delay, ...options }))
        .on('connecting', ({ code, reason }) => tell({ event: 'connecting', code, reason }))
        .on('connected', context => tell({ event: 'connected', client: context.client }))
        .on('disconnected', ({ code, reason }) => tell({ event: 'disconnected', code, reason }))
        .on('error', ({ error }) => tell({ event: 'error', ...fault(error) }));
      return (await settled(client, 'connected', 'disconnected', () => client.connect())).client;
    },
    async subscribe({ room, options }) {
      const one = client.getSubscription(room) ?? subscription(room, options);
      await settled(one, 'subscribed', 'unsubscribed', () => one.subscribe());
    },
    async unsubscribe({ room }) {
      client.getSubscription(room).unsubscribe();
    },
    async remove({ room }) {
      client.removeSubscription(client.getSubscription(room));
    },
    async publish({ room, data }) {
      await client.publish(room, data);
    },
    async publish_many({ room, data, one_frame }) {
      if (one_frame) client.startBatching();
      const published = data.map(each => client.publish(room, each));
      if (one_frame) client.stopBatching();
      await Promise.all(published);
    },
    async history({ room, ...options }) {
      const { publications, offset, epoch } = await client.history(room, options);
      return { publications: publications.map(publication), offset, epoch };
    },
    async presence({ room }) {
      const { clients } = await client.presence(room);
      return Object.fromEntries(Object.entries(clients).map(([id, info]) => [id, person(info)]));
    },
    async presence_stats({ room }) {
      const { numClients, numUsers } = await client.presenceStats(room);
      return { clients: numClients, users: numUsers };
    },
    async rpc({ method, data }) {
      return (await client.rpc(method, data)).data;
    },
    async disconnect() {
      client.disconnect();
    },
    async forget() {
      client?.disconnect();
    },
  };

  return ({ id, do: name, ...rest }) => commands[name](rest).then(
    ok => tell({ id, ok: ok ?? null }),
    error => tell({ id, error: fault(error) }),
  );
}
