"""Listeners, clients and the challenge: this package with itself, and with the standard library of every version of Python here."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import multiprocessing.connection
import os
import pathlib
import signal
import socket
import stat
import struct
import subprocess
import threading
import time

import connection_tasks as tasks
import pytest
from conftest import STDLIB
from test_connection import MODULES, connected, fds, meanwhile, run

import polyproc
import polyproc.connection
from polyproc.connection import Client, Listener, answer_challenge, deliver_challenge, wait

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEYS = [None, b"", b"secret", b"k" * 1000]


@pytest.fixture(params=[STDLIB, "polyproc"])
def mp(request):
    return MODULES[request.param]


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(polyproc.connection, "HANDSHAKE_SECONDS", 1.0)


def sees(listener, name="polyproc", key=None):
    """The listener's end of a whole conversation with tasks.connect()."""
    with meanwhile(tasks.connect, name, listener.address, key), listener.accept() as connection:
        assert connection.recv() == ["hello", 2**70, {"a": b"b"}]
        assert connection.recv_bytes() == b"x" * 100_000
        connection.send("and hello")


# ---- addresses


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("family", [None, "AF_INET", "AF_UNIX"])
@pytest.mark.parametrize("ends", [("polyproc", "polyproc"), ("polyproc", "multiprocessing"), ("multiprocessing", "polyproc")], ids="-".join)
def test_conversation(ends, family, key):
    if key == b"" and "multiprocessing" in ends:
        pytest.skip("the standard library before 3.13 takes an empty key for none")
    with MODULES.get(ends[0], multiprocessing).connection.Listener(family=family, authkey=key) as listener:
        sees(listener, ends[1], key)
        sees(listener, ends[1], key)


def test_an_address_of_its_own(mp):
    with mp.connection.Listener() as a, mp.connection.Listener() as b:
        assert a.address != b.address
        assert stat.S_ISSOCK(os.stat(a.address).st_mode)
        assert stat.S_IMODE(os.stat(os.path.dirname(a.address)).st_mode) == 0o700
        assert a.last_accepted is None
        path = a.address
    assert not os.path.exists(path)
    with mp.connection.Listener(family="AF_INET") as a:
        host, port = a.address
        assert host == "127.0.0.1" and port > 0
        with mp.connection.Client(("localhost", port)), a.accept():
            assert a.last_accepted[0] == "127.0.0.1"


def test_an_address_of_the_programs(mp, tmp_path):
    path = str(tmp_path / "socket")
    listener = mp.connection.Listener(path, backlog=5)
    assert listener.address == path
    with pytest.raises(OSError):
        mp.connection.Listener(path)
    with mp.connection.Client(path) as client, listener.accept() as connection:
        client.send(1)
        assert connection.recv() == 1
    listener.close()
    listener.close()
    assert not os.path.exists(path)
    with pytest.raises(OSError):
        listener.accept()
    with pytest.raises(OSError):
        mp.connection.Client(path)


def test_a_relative_path_is_removed_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listener = Listener("socket")
    os.mkdir("elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    listener.close()
    assert not os.path.exists(tmp_path / "socket")


def test_the_path_of_another_listener_stays(tmp_path):
    path = str(tmp_path / "socket")
    first = Listener(path)
    os.unlink(path)
    with Listener(path) as second:
        first.close()
        sees(second)


def test_abstract_address(mp):
    with mp.connection.Listener(f"\0polyproc-test-{os.getpid()}") as listener:
        with mp.connection.Client(listener.address) as client, listener.accept() as connection:
            client.send(1)
            assert connection.recv() == 1


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="the system has no IPv6")
def test_ipv6():
    try:
        listener = Listener(("::1", 0), "AF_INET6")
    except OSError as e:
        pytest.skip(f"no IPv6 loopback here: {e}")
    with listener:
        sees(listener, key=None)


def test_removed_at_the_end_of_the_program(tmp_path):
    path = run("import polyproc.connection as c; l = c.Listener(); print(l.address)").strip()
    assert not os.path.exists(os.path.dirname(path))
    path = str(tmp_path / "socket")
    run("import sys, polyproc.connection as c; l = c.Listener(sys.argv[1])", path)
    assert not os.path.exists(path)


def test_a_forked_child_leaves_the_path(tmp_path):
    with Listener(str(tmp_path / "socket")) as listener:
        process = polyproc.get_context("fork").Process(target=listener.close)
        process.start()
        process.join(30)
        assert process.exitcode == 0
        process.close()
        sees(listener)


@pytest.mark.parametrize("family", ["AF_PIPE", "AF_NONE", "INET", "SOCK_STREAM"])
def test_families_that_are_none(family, tmp_path):
    for call in (Listener, Client):
        with pytest.raises(ValueError):
            call(str(tmp_path / "socket"), family)


def test_arguments_that_are_none(mp, tmp_path):
    for call in (mp.connection.Listener, mp.connection.Client):
        with pytest.raises(ValueError):
            call(r"\\.\pipe")
        with pytest.raises(TypeError):
            call(5)
        if mp is polyproc:  # before it makes or connects anything
            with pytest.raises(TypeError):
                call(str(tmp_path / "socket"), authkey="text")
    with pytest.raises(ValueError):
        mp.connection.deliver_challenge(None, "text")
    with pytest.raises(ValueError):
        mp.connection.answer_challenge(None, "text")
    assert not os.path.exists(tmp_path / "socket")


def test_nobody_listens(mp, tmp_path):
    before = fds()
    for address in (str(tmp_path / "socket"), "\0polyproc-none", ("127.0.0.1", 1)):
        with pytest.raises(OSError):
            mp.connection.Client(address)
    assert fds() == before


def test_wait_for_a_listener():
    with Listener() as listener:
        assert wait([listener], 0) == []
        with Client(listener.address):
            assert wait([listener], 10) == [listener]
            listener.accept().close()


def test_small_messages_over_tcp_are_not_held_back():
    """Two messages, then an answer: with Nagle's algorithm the second waits 40 ms for the acknowledgement of the first."""
    with Listener(family="AF_INET") as listener, Client(listener.address) as client, listener.accept() as connection:
        for end in (client, connection):
            with socket.socket(fileno=os.dup(end.fileno())) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_clients_in_children(mp, method):
    name = mp.__name__
    for key in (None, b"secret"):
        with mp.connection.Listener(authkey=key) as listener:
            process = mp.get_context(method).Process(target=tasks.connect, args=(name, listener.address, key))
            process.start()
            with listener.accept() as connection:
                assert connection.recv()[0] == "hello"
                connection.recv_bytes()
                connection.send("and hello")
            process.join(30)
            assert process.exitcode == 0
            process.close()


def test_signals_while_accepting(mp):
    count = []
    before = signal.signal(signal.SIGALRM, lambda *_: count.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with mp.connection.Listener(authkey=b"k") as listener:

            def late():
                deadline = time.monotonic() + 30
                while len(count) < 5 and time.monotonic() < deadline:
                    time.sleep(0.001)
                mp.connection.Client(listener.address, authkey=b"k").close()

            with meanwhile(late):
                listener.accept().close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(count) >= 5


# ---- keys


@pytest.mark.parametrize("keys", [(b"right", b"wrong"), (b"right", b""), (b"", b"wrong")])
@pytest.mark.parametrize("ends", [("polyproc", "polyproc"), ("polyproc", "stdlib"), ("stdlib", "polyproc")], ids="-".join)
def test_wrong_key(ends, keys):
    if b"" in keys and "stdlib" in ends:
        pytest.skip("the standard library before 3.13 takes an empty key for none")
    ours, theirs = (MODULES[end] for end in ends)
    before = fds()
    with ours.connection.Listener(authkey=keys[0]) as listener:

        def connect():
            with pytest.raises(theirs.AuthenticationError):
                theirs.connection.Client(listener.address, authkey=keys[1])

        with meanwhile(connect), pytest.raises(ours.AuthenticationError):
            listener.accept()
        if ours is polyproc:
            sees(listener, key=keys[0])
    assert fds() == before


def test_a_peer_that_closes_in_the_middle():
    with Listener(authkey=b"k", backlog=3) as listener:
        Client(listener.address).close()
        with pytest.raises((EOFError, OSError)):
            listener.accept()
        with Client(listener.address) as client, pytest.raises(EOFError), meanwhile(lambda: (client.recv_bytes(), client.close())):
            listener.accept()
        sees(listener, key=b"k")


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"\0\0\0\4nope", polyproc.AuthenticationError),
        (b"\0\0\0\0", polyproc.AuthenticationError),
        (b"\0\0\0\x10" + b"x" * 16, polyproc.AuthenticationError),
        (b"\0\0\0\x16{sha1}" + b"x" * 16, polyproc.AuthenticationError),
        (b"\0\0\0\x28{sha256}" + b"x" * 32, polyproc.AuthenticationError),
        (b"\0\0\1\1" + b"x" * 257, OSError),
        (struct.pack("!i", -5), OSError),
        (struct.pack("!iQ", -1, 1 << 60), OSError),
        (b"GET / HTTP/1.0\r\n\r\n", OSError),
    ],
)
def test_answers_that_are_none(frame, error):
    with Listener(authkey=b"k", backlog=3) as listener:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.address)
            client.sendall(frame)
            with pytest.raises(error):
                listener.accept()
        sees(listener, key=b"k")


@pytest.mark.parametrize(
    "message",
    [b"", b"#CHALLENGE", b"#CHALLENGE#", b"#CHALLENGE#{sha1}" + b"x" * 40, b"#CHALLENGE#" + b"x" * 40, b"#WELCOME#"],
)
def test_challenges_that_are_none(message):
    with connected() as (a, b):
        b.send_bytes(message)
        with pytest.raises(polyproc.AuthenticationError):
            answer_challenge(a, b"k")


@pytest.mark.parametrize("digest", ["md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_digests(digest):
    """Each end against a computation by hand."""
    with connected() as (a, b):
        message = b"{%s}" % digest.encode() + os.urandom(40)
        with meanwhile(answer_challenge, a, b"key"):
            b.send_bytes(b"#CHALLENGE#" + message)
            assert b.recv_bytes() == b"{%s}" % digest.encode() + hmac.new(b"key", message, digest).digest()
            b.send_bytes(b"#WELCOME#")
        with meanwhile(deliver_challenge, a, b"key", digest):
            message = b.recv_bytes()
            assert message.startswith(b"#CHALLENGE#{%s}" % digest.encode())
            assert len(message) == len(b"#CHALLENGE#{}" + digest.encode()) + 40
            b.send_bytes(b"{%s}" % digest.encode() + hmac.new(b"key", message[11:], digest).digest())
            assert b.recv_bytes() == b"#WELCOME#"
    with pytest.raises(ValueError):
        deliver_challenge(None, b"key", "sha1")


@pytest.mark.parametrize("message", [b"x" * 20, b"{sha256}" + b"x" * 12, b"{" * 20])
def test_the_older_challenge(message):
    """Twenty bytes are an older listener's, whatever they are; an older client answers anything with MD5."""
    with connected() as (a, b):
        with meanwhile(answer_challenge, a, b"key"):
            b.send_bytes(b"#CHALLENGE#" + message)
            assert b.recv_bytes() == hmac.new(b"key", message, "md5").digest()
            b.send_bytes(b"#WELCOME#")
        with meanwhile(deliver_challenge, a, b"key"):
            message = b.recv_bytes()[11:]
            b.send_bytes(hmac.new(b"key", message, hashlib.md5).digest())
            assert b.recv_bytes() == b"#WELCOME#"


# ---- peers that stall


def test_a_client_that_says_nothing(hurry):
    with Listener(authkey=b"k", backlog=3) as listener:
        with Client(listener.address):
            start = time.monotonic()
            with pytest.raises(polyproc.AuthenticationError):
                listener.accept()
            assert 0.25 < time.monotonic() - start < 10
        sees(listener, key=b"k")


def test_a_client_that_says_it_slowly(hurry):
    """The limit is for the whole, not for each byte."""
    with Listener(authkey=b"k", backlog=3) as listener:
        over = threading.Event()
        with Client(listener.address) as client:

            def drip():
                with contextlib.suppress(OSError):
                    for byte in struct.pack("!i", 200) + b"x" * 200:
                        if over.wait(0.05):
                            break
                        os.write(client.fileno(), bytes([byte]))

            with meanwhile(drip):
                start = time.monotonic()
                try:
                    with pytest.raises(polyproc.AuthenticationError):
                        listener.accept()
                finally:
                    over.set()
                assert time.monotonic() - start < 5
        sees(listener, key=b"k")


def test_a_client_that_never_asks_back(hurry):
    with Listener(authkey=b"k", backlog=3) as listener:
        with Client(listener.address) as client:
            with meanwhile(answer_challenge, client, b"k"), pytest.raises(polyproc.AuthenticationError):
                listener.accept()
        sees(listener, key=b"k")


def test_a_listener_that_is_busy_is_waited_for(hurry):
    with Listener(authkey=b"k") as listener:
        connecting = threading.Event()

        def connect():
            connecting.set()
            Client(listener.address, authkey=b"k").close()

        with meanwhile(connect):
            connecting.wait()
            assert wait([listener], 10)
            over = time.monotonic() + 2 * polyproc.connection.HANDSHAKE_SECONDS
            assert wait([], over - time.monotonic()) == []
            listener.accept().close()


def test_a_listener_that_stalls_in_the_middle(hurry):
    with Listener() as listener:

        def connect():
            with pytest.raises(polyproc.AuthenticationError):
                Client(listener.address, authkey=b"k")

        with meanwhile(connect), listener.accept() as connection:
            connection.send_bytes(b"#CHALLENGE#" + b"x" * 20)
            connection.recv_bytes()
            with pytest.raises(EOFError):
                connection.recv_bytes()


@pytest.mark.parametrize("ends", [("polyproc", "polyproc"), ("polyproc", "stdlib"), ("stdlib", "polyproc")], ids="-".join)
def test_xml(ends):
    ours, theirs = (MODULES[end].connection for end in ends)
    value = {"list": [1, 2.5, None, "ä"], "flag": True}
    with ours.XmlListener(authkey=b"k") as listener:

        def connect():
            client = theirs.XmlClient(listener.address, authkey=b"k")
            client.send(value)
            assert client.recv() == [value]
            client.close()

        with meanwhile(connect):
            connection = listener.accept()
            assert connection.recv() == value
            connection.send([value])
            connection.close()


# ---- other versions of Python

VERSIONS = ["3.9", "3.11", "3.12", "3.13"]


@pytest.fixture(scope="module")
def pythons():
    found = subprocess.run(["bash", str(ROOT / "tests" / "tools" / "pythons"), *VERSIONS], capture_output=True, text=True, timeout=60)
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    versions = {}
    for path in found.stdout.split():
        asked = subprocess.run([path, "-c", ask], capture_output=True, text=True, timeout=60)
        versions[asked.stdout.strip()] = path
    assert versions
    return versions


@pytest.mark.slow  # on whatever version this runs, it is the same
@pytest.mark.parametrize(("family", "key"), [("AF_UNIX", "secret"), ("AF_INET", "-")])  # neither depends on the other
@pytest.mark.parametrize("ours", ["3.9", "3.11", "3.13"])
@pytest.mark.parametrize("theirs", VERSIONS)
def test_every_version_talks_to_every_version(pythons, theirs, ours, family, key):
    for version in (theirs, ours):
        if version not in pythons:
            pytest.skip(f"no Python {version} here")
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(polyproc.__file__))}

    def start(version, *args):
        command = [pythons[version], "-S", tasks.__file__, *args, key]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    for listening, connecting in ((("polyproc", ours), ("multiprocessing", theirs)), (("multiprocessing", theirs), ("polyproc", ours))):
        with start(listening[1], "listen", listening[0], family) as server:
            try:
                address = server.stdout.readline().strip()
                with start(connecting[1], "connect", connecting[0], address) as client:
                    try:
                        assert client.communicate(timeout=30)[0] == "done\n"
                    finally:
                        client.kill()
                assert server.communicate(timeout=30)[0] == "done\n"
            finally:
                server.kill()
            assert (server.returncode, client.returncode) == (0, 0)




def test_a_crowd_of_silent_clients_keeps_nobody_out(monkeypatch):
    """However many there are, and however long each may take: the oldest give way."""
    monkeypatch.setattr(polyproc.connection, "HANDSHAKE_SECONDS", 1e6)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener(("localhost", 0), authkey=b"secret", backlog=300))
        silent = [stack.enter_context(socket.create_connection(listener.address)) for _ in range(150)]
        before = fds()
        with meanwhile(tasks.connect, "polyproc", listener.address, b"secret"), listener.accept() as connection:
            assert connection.recv() == ["hello", 2**70, {"a": b"b"}]
            assert connection.recv_bytes() == b"x" * 100_000
            connection.send("and hello")
        assert fds() <= before + 64
        # Those that were closed are the first ones.
        with contextlib.suppress(ConnectionError):
            while silent[0].recv(100):
                pass
    assert len(listener._incoming) == 0


def test_silent_clients_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(polyproc.connection, "HANDSHAKE_SECONDS", 1e6)
    with Listener(("localhost", 0), authkey=b"k", backlog=8) as listener, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(listener.address)) for _ in range(5)]
        for message in (b"hello", b"again"):
            with meanwhile(client_says, listener.address, message), listener.accept() as connection:
                assert connection.recv_bytes() == message
        # One of those is late, and its proof is as good.
        late = silent.pop()
        address = late.getsockname()
        with meanwhile(prove, late, b"k"), listener.accept() as connection:
            assert listener.last_accepted == address
            connection.send_bytes(b"at last")
        # Another lies.
        with meanwhile(prove, silent.pop(), b"other"), pytest.raises(polyproc.AuthenticationError):
            listener.accept()
    for each in silent:
        each.close()


def test_clients_wait_for_a_busy_listener_though_they_come_together(hurry):
    """One after the other is served: the second has not begun the challenge, which has a limit."""
    with Listener(("localhost", 0), authkey=b"k", backlog=8) as listener, contextlib.ExitStack() as stack:
        for i in range(3):
            stack.enter_context(meanwhile(client_says, listener.address, b"%d" % i))
        time.sleep(0.2)  # all have connected
        said = set()
        for _ in range(3):
            with listener.accept() as connection:
                time.sleep(1.5 * polyproc.connection.HANDSHAKE_SECONDS)
                said.add(connection.recv_bytes())
        assert said == {b"0", b"1", b"2"}


def test_another_process_takes_the_connection(monkeypatch):
    """Processes that have one listener: who comes too late for a connection goes on with the challenge of another."""
    poll_until = polyproc.connection._poll_until
    with Listener(("localhost", 0), authkey=b"k", backlog=8) as listener, socket.create_connection(listener.address) as slow:
        others = listener._listener._socket.dup()
        address = slow.getsockname()
        with others, contextlib.ExitStack() as stack:
            taken = []

            def be_late(poll, timeout):
                found = poll_until(poll, timeout)
                if listener.fileno() in dict(found) and not taken:
                    taken.append(stack.enter_context(others.accept()[0]))
                    stack.enter_context(meanwhile(prove, slow, b"k"))
                return found

            monkeypatch.setattr(polyproc.connection, "_poll_until", be_late)
            stack.enter_context(socket.create_connection(listener.address))
            with listener.accept() as connection:
                assert listener.last_accepted == address
                connection.send_bytes(b"at last")
            assert taken
            assert others.gettimeout() is None
            assert os.get_blocking(others.fileno())


def client_says(address, message):
    with Client(address, authkey=b"k") as connection:
        connection.send_bytes(message)


def prove(sock, key):
    with polyproc.connection.Connection(sock.detach()) as connection:
        try:
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
            assert connection.recv_bytes() == b"at last"
        except polyproc.AuthenticationError:
            assert key == b"other"


def test_a_client_answers_no_client():
    """Somebody without the key cannot have one connection of a client answer what the other asks."""

    def receive(sock):
        head = sock.recv(4, socket.MSG_WAITALL)
        return sock.recv(struct.unpack("!i", head)[0], socket.MSG_WAITALL) if head else None

    def send(sock, message):
        sock.sendall(struct.pack("!i", len(message)) + message)

    def client(address):
        with pytest.raises((polyproc.AuthenticationError, EOFError, OSError)):
            Client(address, authkey=b"the key").close()

    with socket.create_server(("localhost", 0)) as server:
        address = server.getsockname()
        with meanwhile(client, address), meanwhile(client, address):
            with server.accept()[0] as first, server.accept()[0] as second:
                send(first, b"#CHALLENGE#{sha256}" + os.urandom(40))
                assert receive(first).startswith(b"{sha256}")
                send(first, b"#WELCOME#")
                send(second, receive(first))
                assert receive(second) is None


# ---- several that accept


@pytest.mark.parametrize("key", [None, b"secret"])
def test_accept_after_close_while_a_thread_accepts(key):
    listener = Listener(authkey=key)
    raised = []

    def accept():
        try:
            listener.accept()
        except OSError as error:
            raised.append(str(error))

    # The first stays where it is, as with the standard library: closing a socket wakes nobody who waits for it.
    threading.Thread(target=accept, daemon=True).start()
    time.sleep(0.2)
    listener.close()
    second = threading.Thread(target=accept, daemon=True)
    second.start()
    second.join(10)
    assert raised == ["listener is closed"]


@pytest.mark.parametrize("key", [None, b"secret"])
def test_accept_in_a_child_forked_while_a_thread_accepts(key):
    with Listener(authkey=key, backlog=4) as listener:

        def serve():
            with listener.accept() as connection:
                connection.send("parent")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        time.sleep(0.2)
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            with contextlib.suppress(BaseException), listener.accept() as connection:
                connection.send("child")
            os._exit(0)
        try:
            answers = set()
            for _ in range(2):
                with Client(listener.address, authkey=key) as connection:
                    assert connection.poll(10)
                    answers.add(connection.recv())
            assert answers == {"parent", "child"}
            thread.join(10)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("key", [None, b"secret"])
def test_accept_in_a_signal_handler_while_accepting(mp, key):
    with mp.connection.Listener(authkey=key, backlog=4) as listener:

        def handler(_number, _frame):
            with listener.accept() as connection:
                connection.send("handler")

        def connect():
            time.sleep(0.5)
            for _ in range(2):
                with mp.connection.Client(listener.address, authkey=key) as connection:
                    answers.append(connection.recv())

        answers = []
        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with meanwhile(connect), listener.accept() as connection:
                connection.send("outside")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert answers == ["handler", "outside"]
