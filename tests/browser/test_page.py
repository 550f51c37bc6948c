"""The page that the daemon serves, in a real browser, used as a person would use it."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from browser.daemon import Daemon

pytestmark = pytest.mark.no_cover  # twice as fast; the server is another process

Window = Callable[[], Page]

SEND_AS_A_PLAIN_CLIENT = """async ([room, messages]) => {
    const ws = new WebSocket(`ws://${location.host}/chat/${room}`)
    await new Promise(resolve => { ws.onopen = resolve })
    let left = messages.length
    const back = new Promise(resolve => { ws.onmessage = () => { if (--left === 0) resolve() } })
    for (const message of messages) ws.send(Array.isArray(message) ? new Uint8Array(message) : message)
    await back
    ws.close()
}"""
"""Publish messages (text, or bytes as an array) and return when all came back."""


def enter(page: Page, daemon: Daemon, room: str, nickname: str = "") -> Page:
    """Open the page at a room and wait until it is connected."""
    page.goto(f"{daemon.url}/#{room}")
    connected(page)
    if nickname:
        page.fill("#nickname", nickname)
        page.press("#nickname", "Enter")
    return page


def connected(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("Connected")


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def shows(page: Page, *lines: str) -> None:
    """Wait until exactly these messages are shown, in this order, each as `name: text` or `text`."""
    script = """() => [...document.querySelectorAll('#messages li:not(.joined)')].map(item =>
        (item.dataset.name ? `${item.dataset.name}: ` : '') + item.querySelector('.text').textContent)"""
    page.wait_for_function(f"lines => JSON.stringify(({script})()) === JSON.stringify(lines)", arg=list(lines))


def test_two_windows_chat_in_one_order(daemon: Daemon, window: Window) -> None:
    """Both people see both messages in the same order, and each knows its own."""
    ada, grace = enter(window(), daemon, "two", "ada"), enter(window(), daemon, "two", "grace")
    say(ada, "hello, grace")
    shows(grace, "ada: hello, grace")
    grace.fill("#text", "hello, ada")
    grace.click("#send")
    for page, own in ((ada, "hello, grace"), (grace, "hello, ada")):
        shows(page, "ada: hello, grace", "grace: hello, ada")
        expect(page.locator("li.own .text")).to_have_text(own)
        expect(page.locator("#text")).to_have_value("")


def test_many_messages_have_one_order(daemon: Daemon, window: Window) -> None:
    """What three clients publish at once looks the same in two windows."""
    pages = [enter(window(), daemon, "busy") for _ in range(2)]
    pages[0].evaluate(
        f"messages => Promise.all(messages.map(some => ({SEND_AS_A_PLAIN_CLIENT})(['busy', some])))",
        [[f"{name}: {i}" for i in range(40)] for name in ("ada", "grace", "edsger")],
    )
    for page in pages:
        expect(page.locator("#messages .text")).to_have_count(120)
    first, second = (page.locator("#messages :is(.name, .text)").all_text_contents() for page in pages)
    assert first == second


def test_markup_is_text(daemon: Daemon, window: Window) -> None:
    """Markup in a message, a name or a room is shown as it was written, and nothing of it runs."""
    page = enter(window(), daemon, "markup", "<b>ada</b>")
    nasty = "<img src=x onerror=\"document.title='run'\">", "<script>document.title = 'run'</script>"
    for text in nasty:
        say(page, text)
    page.evaluate(SEND_AS_A_PLAIN_CLIENT, ["markup", [f"{nasty[0]}: {nasty[1]}"]])
    shows(page, *(f"<b>ada</b>: {text}" for text in nasty), f"{nasty[0]}: {nasty[1]}")
    expect(page.locator("#messages :is(img, script, b)")).to_have_count(0)
    expect(page).to_have_title("markup · hubbub")


def test_text_without_a_name_and_bytes(daemon: Daemon, window: Window) -> None:
    """Other plain clients may send anything: text is shown whole, bytes by their number."""
    page = enter(window(), daemon, "plain")
    page.evaluate(SEND_AS_A_PLAIN_CLIENT, ["plain", ["no name here", "https://example.org/", [1, 2, 3]]])
    shows(page, "no name here", "https://example.org/", "[binary, 3 bytes]")


def test_a_late_joiner_sees_the_history(daemon: Daemon, window: Window) -> None:
    """Who comes later reads what was said before, at most the last fifty messages, and then what follows."""
    early = enter(window(), daemon, "late", "ada")
    early.evaluate(SEND_AS_A_PLAIN_CLIENT, ["late", [f"line {i}" for i in range(60)]])
    late = enter(window(), daemon, "late")
    shows(late, *(f"line {i}" for i in range(10, 60)))
    say(early, "now")
    shows(late, *(f"line {i}" for i in range(10, 60)), "ada: now")


def test_rooms_and_the_address(daemon: Daemon, window: Window) -> None:
    """The room is in the address and the address is the room; both fields are remembered."""
    page = enter(window(), daemon, "first", "ada")
    say(page, "in the first")
    shows(page, "ada: in the first")
    page.fill("#room", "tea & cake? 50%/ü")
    page.press("#room", "Enter")
    connected(page)
    shows(page)
    assert page.evaluate("decodeURIComponent(location.hash)") == "#tea & cake? 50%/ü"
    encoded = "tea%20%26%20cake%3F%2050%25%2F%C3%BC"
    other = enter(window(), daemon, encoded)
    other.evaluate(SEND_AS_A_PLAIN_CLIENT, [encoded, ["grace: found it"]])
    shows(other, "grace: found it")
    shows(page, "grace: found it")
    page.go_back()
    expect(page.locator("#room")).to_have_value("first")
    shows(page, "ada: in the first")
    page.evaluate("location.hash = 'third'")
    expect(page.locator("#messages .joined")).to_contain_text("third")
    page.goto("about:blank")
    page.goto(daemon.url)
    connected(page)
    expect(page.locator("#room")).to_have_value("third")
    expect(page.locator("#nickname")).to_have_value("ada")


def test_a_bad_room_name_is_refused_here(daemon: Daemon, window: Window) -> None:
    """The page says what is allowed, opens no connection and stays in its room."""
    page = enter(window(), daemon, "good")
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    for name in ("", "..", "x" * 256, "zero\u200bwidth"):
        page.fill("#room", name)
        page.press("#room", "Enter")
        expect(page.locator("#room-fault")).to_contain_text("1 to 255 printable characters")
        page.fill("#room", "good")
        page.press("#room", "Enter")
        expect(page.locator("#room-fault")).to_be_empty()
    connected(page)
    assert sockets == []


def test_too_long_a_message_is_refused_here(daemon: Daemon, window: Window) -> None:
    """65536 bytes of UTF-8, name included, pass; one more doesn't, and stays in the box."""
    page = enter(window(), daemon, "long", "ada")
    most = "ü" * ((65536 - len("ada: ")) // 2) + "."
    say(page, most + ".")
    expect(page.locator("#notice")).to_contain_text("65537 bytes")
    expect(page.locator("#text")).to_have_value(most + ".")
    say(page, most)
    shows(page, f"ada: {most}")
    connected(page)


def test_scrolling_up_stops_following(daemon: Daemon, window: Window) -> None:
    """At the end the list follows; further up it stays, and a button tells of new messages."""
    page = enter(window(), daemon, "scroll")
    page.evaluate(SEND_AS_A_PLAIN_CLIENT, ["scroll", [f"line {i}" for i in range(60)]])
    expect(page.locator("#messages li").last).to_be_in_viewport()
    expect(page.locator("#newer")).to_be_hidden()
    page.locator("#log").hover()
    page.mouse.wheel(0, -600)
    expect(page.locator("#messages li").last).not_to_be_in_viewport()
    page.wait_for_timeout(100)  # the wheel's last scroll event
    page.evaluate(SEND_AS_A_PLAIN_CLIENT, ["scroll", ["one more"]])
    page.click("#newer")
    expect(page.locator("#messages li").last).to_be_in_viewport()
    expect(page.locator("#newer")).to_be_hidden()


def test_at_most_a_thousand_messages_are_kept(daemon: Daemon, window: Window) -> None:
    """A long evening doesn't fill the browser's memory."""
    page = enter(window(), daemon, "evening")
    page.evaluate(SEND_AS_A_PLAIN_CLIENT, ["evening", [f"line {i}" for i in range(1100)]])
    expect(page.locator("#messages li").last.locator(".text")).to_have_text("line 1099")
    expect(page.locator("#messages li")).to_have_count(1000)


def test_it_comes_back_after_a_restart(own_daemon: Daemon, window: Window) -> None:
    """The daemon stops: the page says so, keeps what is typed, and returns by itself."""
    page = enter(window(), own_daemon, "again", "ada")
    say(page, "before")
    shows(page, "ada: before")
    own_daemon.stop()
    expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
    expect(page.locator("#send")).to_be_disabled()
    say(page, "kept")
    expect(page.locator("#notice")).to_contain_text("Not connected")
    own_daemon.start()
    connected(page)
    shows(page)  # the memory engine remembers nothing across a restart, and the list started over
    page.press("#text", "Enter")
    shows(page, "ada: kept")


def test_a_reconnection_doesnt_double_the_history(daemon: Daemon, window: Window) -> None:
    """The room remembers, the page starts its list over: every message is there once."""
    page = window()
    routes: list[WebSocketRoute] = []

    def pass_through(route: WebSocketRoute) -> None:
        route.connect_to_server()
        routes.append(route)

    page.route_web_socket("**/chat/once*", pass_through)
    enter(page, daemon, "once", "ada")
    say(page, "one")
    shows(page, "ada: one")
    routes[-1].close(code=1013, reason="slow consumer")
    expect(page.locator("#connection")).not_to_have_attribute("data-state", "connected")
    connected(page)
    say(page, "two")
    shows(page, "ada: one", "ada: two")
    assert len(routes) == 2


@pytest.mark.parametrize("code", [1001, 1009, 1011, 1013])
def test_it_waits_and_returns_after_a_close(daemon: Daemon, window: Window, code: int) -> None:
    """Code and reason are shown; what had not come back is in the box again; `online` cuts the wait short."""
    page = window()
    routes: list[WebSocketRoute] = []
    page.route_web_socket("**/chat/*", lambda route: routes.append(route))
    page.add_init_script("Math.random = () => 0.999; performance.now = () => 0")  # a wait without an end
    enter(page, daemon, "closing", "ada")
    say(page, "into the void")
    expect(page.locator("#text")).to_have_value("")
    routes[-1].close(code=code, reason="because")
    expect(page.locator("#why")).to_have_text(f"{code} because")
    expect(page.locator("#connection")).to_contain_text("Reconnecting in 1 s")
    expect(page.locator("#text")).to_have_value("into the void")
    expect(page.locator("#send")).to_be_disabled()
    assert len(routes) == 1
    page.evaluate("dispatchEvent(new Event('online'))")
    connected(page)
    assert len(routes) == 2


def test_the_wait_doubles_up_to_half_a_minute(daemon: Daemon, window: Window) -> None:
    """0.5 s, 1 s, 2 s … 30 s, all of it jitter (which is at its greatest here)."""
    page = window()
    page.route_web_socket("**/chat/*", lambda route: route.close(code=1013, reason="full"))
    page.add_init_script("Math.random = () => 1; performance.now = () => 0")
    page.goto(f"{daemon.url}/#backoff")
    for seconds in (1, 1, 2, 4, 8, 16, 30, 30):
        expect(page.locator("#countdown")).to_have_text(f"in {seconds} s")
        page.click("#retry")


def test_it_stays_away_when_it_isnt_allowed(daemon: Daemon, window: Window) -> None:
    """1008 ends it: code and reason are shown, and only a person starts again."""
    page = window()
    routes: list[WebSocketRoute] = []
    page.route_web_socket("**/chat/*", lambda route: routes.append(route))
    enter(page, daemon, "forbidden")
    routes[-1].close(code=1008, reason="not allowed here")
    expect(page.locator("#connection")).to_have_attribute("data-state", "closed")
    expect(page.locator("#why")).to_have_text("1008 not allowed here")
    page.wait_for_timeout(700)  # longer than the first wait of the back-off
    assert len(routes) == 1
    page.click("#retry")
    connected(page)


def test_the_three_line_client(daemon: Daemon, window: Window) -> None:
    """What the page tells people to paste is a complete client, and it meets them in the page's first room."""
    page = window()
    page.goto(daemon.url)
    connected(page)
    page.click("summary")
    snippet = page.locator("#snippet").text_content() or ""
    assert f"ws://127.0.0.1:{daemon.port}/chat'" in snippet
    assert len(snippet.splitlines()) == 3
    with page.expect_console_message(lambda message: message.text == "hello"):
        page.evaluate(f"() => {{ {snippet} }}")
    shows(page, "hello")


def test_it_loads_nothing_else_and_breaks_no_rule(daemon: Daemon, window: Window) -> None:
    """No error, no warning, no violation of its Content-Security-Policy, no request to another host."""
    page = window()
    problems: list[str] = []
    urls: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.on("websocket", lambda socket: urls.append(socket.url))
    page.add_init_script("addEventListener('securitypolicyviolation', event => console.log(event.violatedDirective))")
    response = page.goto(f"{daemon.url}/#quiet")
    assert response is not None
    assert "default-src 'none'" in response.headers["content-security-policy"]
    connected(page)
    say(page, "hello")
    expect(page.locator("#messages .text")).to_have_text("hello")
    assert problems == []
    host = f"127.0.0.1:{daemon.port}"
    assert set(urls) >= {
        f"http://{host}/",
        f"http://{host}/static/hubbub.js",
        f"http://{host}/static/hubbub.css",
    }
    assert {url.split("/")[2] for url in urls} == {host}


@pytest.mark.parametrize(("width", "height"), [(360, 640), (1100, 800)])
def test_it_fits_the_screen(daemon: Daemon, window: Window, width: int, height: int) -> None:
    """Neither the page nor a message of one endless word is wider or higher than the screen."""
    page = window()
    page.set_viewport_size({"width": width, "height": height})
    enter(page, daemon, f"fits-{width}")
    say(page, "endless" * 100)
    expect(page.locator("#messages .text")).to_have_count(1)
    root = "document.documentElement"
    assert page.evaluate(f"[{root}.scrollWidth, {root}.scrollHeight]") == [width, height]
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#log'))")
    expect(page.locator("#send")).to_be_in_viewport(ratio=1)
