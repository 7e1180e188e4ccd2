"""The program that serves tensor streams, as it runs in containers: its requests, refusals, generators and its end."""

from __future__ import annotations

import ast
import json
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.moorage_tensors import BadTensor, Frame, Limits, Tensor, layout, safetensors
from runner.tensor_server import __file__ as PROGRAM

APP = """
    import asyncio, os, time
    import moorage_tensors
    from moorage_tensors import Tensor

    class Counter:
        repeatable = True

        async def setup(self):
            self.made = 0

        async def run(self, prompt, tensor):
            words = prompt.split()
            if words[0] == "raise":
                raise LookupError("no such prompt")
            if words[0] == "exit":
                raise SystemExit(3)
            if words[0] == "cancel":
                raise asyncio.CancelledError
            if words[0] == "bad":
                yield {"a": "words"}
            if words[0] == "late":
                time.sleep(0.3)
            try:
                for number in range(int(words[1])):
                    self.made += 1
                    yield Tensor("U8", [int(words[2])], bytes(int(words[2]))) if words[0] == "large" else b"%d" % number
                    await asyncio.sleep(0)
            finally:
                print("closed", self.made, flush=True)
                self.made = 0

        async def close(self):
            print("app closed", flush=True)

    def plain(prompt, tensor, start_at):
        try:
            for number in range(start_at, 3):
                yield tensor
        finally:
            print("plain closed", flush=True)

    async def single(prompt, tensor):
        return tensor

    def no_generator(prompt, tensor):
        return 3

    class Broken:
        def setup(self):
            raise RuntimeError("no weights")

        run = Counter.run
"""


class Program:
    def __init__(self, folder: Path, *words: str) -> None:
        (folder / "app.py").write_text(textwrap.dedent(APP))
        argv = [sys.executable, "-B", PROGRAM, *words, "--path", str(folder), "--port", "0", "--most-mib", "8"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.port = 0

    def ready(self) -> Program:
        line = self.said()
        self.port = int(line.rpartition(" ")[2])
        return self

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, sent: bytes) -> tuple[int, Any]:
        """Status and body of what answers."""
        with self.connect() as sock:
            sock.sendall(sent)
            answer = b""
            while piece := sock.recv(1 << 16):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        return status, json.loads(body) if b"application/json" in head else frames(body)

    def stream(self, prompt: str, tensor: Tensor | None = None, start_at: int = 0) -> list[Any]:
        status, told = self.ask(request(prompt, tensor, start_at))
        assert status == 200
        return list(told)

    def end(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


def request(prompt: str, tensor: Tensor | None = None, start_at: int = 0) -> bytes:
    return post(b"".join(Frame("request", 0, {"prompt": prompt, "start_at": start_at}, tensor).parts()))


def post(body: bytes, length: int | None = None) -> bytes:
    return b"POST /stream HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def frame(header: dict[str, Any], payload: bytes = b"", size: int | None = None) -> bytes:
    told = json.dumps(header).encode()
    return struct.pack("!IQ", len(told), len(payload) if size is None else size) + told + payload


def frames(body: bytes) -> list[tuple[str, int, dict[str, Any], bytes]]:
    found = []
    while body:
        header, size = struct.unpack_from("!IQ", body)
        told = json.loads(body[12 : 12 + header])
        found.append((told["kind"], told["seq"], told, body[12 + header : 12 + header + size]))
        body = body[12 + header + size :]
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    made = Program(tmp_path_factory.mktemp("app"), "app:Counter").ready()
    yield made
    code, out, _ = made.end()
    assert (code, out.strip()) == (0, "app closed")


def test_outputs_and_their_numbers(program: Program) -> None:
    told = program.stream("count 3")
    assert [(kind, seq, payload) for kind, seq, _, payload in told] == [
        ("open", 0, b""), ("tensor", 0, b"0"), ("tensor", 1, b"1"), ("tensor", 2, b"2"), ("end", 3, b""),
    ]  # fmt: skip
    assert told[0][2]["load"] == {"active": 1, "limit": 16, "served": told[0][2]["load"]["served"]}
    assert told[1][2]["dtype"] == "U8"
    assert program.said() == "closed 3"
    assert [seq for _, seq, _, _ in program.stream("count 3", start_at=2)] == [2, 2, 3]
    assert program.said() == "closed 3"


RAW = {"kind": "request", "prompt": "count 1", "format": "raw", "dtype": "F32", "shape": [2, 2]}
#: What is sent, and its answer.
REFUSED = {
    "no_http": (b"hello\r\n\r\n", 400, "invalid_request"),
    "a_large_head": (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431, "request_too_large"),
    "two_lengths": (b"POST /stream HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "invalid_request"),
    "elsewhere": (b"GET /else HTTP/1.1\r\n\r\n", 404, "not_found"),
    "by_get": (b"GET /stream HTTP/1.1\r\n\r\n", 405, "method_not_allowed"),
    "without_a_length": (b"POST /stream HTTP/1.1\r\n\r\n", 411, "length_required"),
    "a_length_of_odd_digits": (b"POST /stream HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 411, "length_required"),
    "a_length_of_many_digits": (b"POST /stream HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413, "tensor_too_large"),
    "too_long": (post(b"", 1 << 40), 413, "tensor_too_large"),
    "no_frame": (post(b"x"), 400, "bad_frame"),
    "nothing": (post(b""), 400, "bad_frame"),
    "no_request": (post(frame({"kind": "tensor"})), 400, "bad_frame"),
    "a_frame_beyond_its_body": (post(frame(RAW, b"x" * 16)[:-4]), 400, "bad_frame"),
    "bytes_that_are_not_its_shape": (post(frame(RAW, b"x" * 15)), 400, "bad_tensor"),
    "a_shape_that_would_take_everything": (
        post(frame({**RAW, "shape": [1 << 40, 1 << 20]}, size=1 << 22)), 400, "bad_tensor"
    ),
    "a_shape_of_nothing_that_no_library_makes": (post(frame({**RAW, "shape": [0, 1 << 62, 1 << 62]})), 400, "bad_tensor"),
    "a_payload_that_would_take_everything": (post(frame(RAW, size=1 << 50)), 413, "tensor_too_large"),
    "no_such_dtype": (post(frame({**RAW, "dtype": "object"}, b"x" * 16)), 400, "bad_tensor"),
    "pickle": (post(frame({**RAW, "format": "pickle"}, b"\x80\x04.")), 400, "bad_frame"),
    "no_prompt": (post(frame({"kind": "request", "prompt": 3})), 400, "bad_frame"),
    "a_negative_start": (post(frame({"kind": "request", "prompt": "", "start_at": -1})), 400, "bad_frame"),
    "another_node": (post(frame({"kind": "request", "prompt": "", "peer": "somebody"})), 421, "wrong_peer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_and_the_service_lives_on(program: Program, name: str) -> None:
    sent, status, code = REFUSED[name]
    got, told = program.ask(sent)
    assert (got, told["code"]) == (status, code)
    assert told["message"]
    assert program.ask(b"GET /health HTTP/1.1\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    ("prompt", "code", "ename"),
    [
        ("raise", "application_error", "LookupError"),
        ("exit", "application_error", "SystemExit"),
        ("cancel", "application_error", "RuntimeError"),
        ("bad", "bad_output", None),
        ("large 1 9000000", "bad_output", None),
    ],
)
def test_an_error_of_the_application_is_told_in_the_stream(
    program: Program, prompt: str, code: str, ename: str | None
) -> None:
    *_, (kind, _, told, _) = program.stream(prompt)
    assert (kind, told["code"], told.get("ename")) == ("error", code, ename)
    if prompt.startswith("large"):
        assert program.said() == "closed 1"
    assert program.ask(b"GET /info HTTP/1.1\r\n\r\n")[1]["load"]["active"] == 0


def test_nothing_is_made_ahead_and_a_client_that_vanishes_ends_it(program: Program) -> None:
    with program.connect() as sock:
        sock.sendall(request("large 100000 1048576"))
        there = 0
        while there < 5 << 20:
            there += len(sock.recv(1 << 20))
    word, made = program.said().split()
    assert word == "closed"
    assert 5 <= int(made) < 50  # what sockets hold, not what the application could make


def test_an_application_that_keeps_its_loop_busy_does_not_keep_the_service_from_answering(program: Program) -> None:
    with program.connect() as sock:
        sock.sendall(request("late 1"))
        assert sock.recv(1)
        assert program.ask(b"GET /health HTTP/1.1\r\n\r\n")[1]["load"]["active"] == 1
        while sock.recv(1 << 16):
            pass
    assert program.said() == "closed 1"


def test_a_plain_generator_begins_where_it_is_asked_to(tmp_path: Path) -> None:
    program = Program(tmp_path, "app:plain").ready()
    tensor = Tensor("I16", [2], b"\1\0\2\0")
    told = program.stream("p", tensor, start_at=1)
    assert [(kind, seq, payload) for kind, seq, _, payload in told[1:]] == [
        ("tensor", 1, b"\1\0\2\0"), ("tensor", 2, b"\1\0\2\0"), ("end", 3, b""),
    ]  # fmt: skip
    assert (told[1][2]["dtype"], told[1][2]["shape"], program.said()) == ("I16", [2], "plain closed")
    program.end()


def test_one_value_is_a_stream_of_one_and_cannot_be_gone_on_with(tmp_path: Path) -> None:
    program = Program(tmp_path, "app:single").ready()
    tensor = Tensor("F64", [], struct.pack("<d", 1.5))
    assert [(kind, told.get("shape")) for kind, _, told, _ in program.stream("", tensor)] == [
        ("open", None), ("tensor", []), ("end", None),
    ]  # fmt: skip
    status, told = program.ask(request("", tensor, start_at=1))
    assert (status, told["code"]) == (409, "cannot_resume")
    program.end()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("app:Broken", "no weights"),
        ("app:Missing", "has no attribute 'Missing'"),
        ("missing:App", "No module named 'missing'"),
        ("app", "is to name a module"),
    ],
)
def test_what_cannot_be_set_up_ends_the_program(tmp_path: Path, entry: str, said: str) -> None:
    program = Program(tmp_path, entry)
    out, err = program.process.communicate(timeout=20)
    assert (program.process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"tensor-stream: {entry} cannot be served: ")
    assert said in err.splitlines()[-1]


def test_safetensors_as_its_format_says() -> None:
    parts = safetensors({"b": Tensor("F32", [1, 2], bytes(8)), "a": Tensor("U8", [3], b"abc")})
    raw = b"".join(parts)
    (length,) = struct.unpack_from("<Q", raw)
    assert length % 8 == 0
    assert json.loads(raw[8 : 8 + length]) == {
        "b": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
    }
    assert raw[8 + length :] == bytes(8) + b"abc"
    told = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    for wrong in (
        {"x": {**told["x"], "shape": [3]}},
        {**told, "y": {**told["x"], "data_offsets": [4, 12]}},
        {"x": {**told["x"], "data_offsets": [0]}},
        {"x": {**told["x"], "data_offsets": [8, 0]}},
        {"x": [1]},
        {},
    ):
        with pytest.raises(BadTensor):
            layout(json.dumps(wrong).encode(), 8, Limits())


@pytest.mark.parametrize(
    "name", ["moorage_tensors", "moorage_authorizers", "tensor_arrays", "tensor_app", "tensor_server"]
)
def test_it_is_written_for_python_3_8(name: str) -> None:
    tree = ast.parse((Path(PROGRAM).parent / f"{name}.py").read_text(), feature_version=(3, 8))
    later = {"removeprefix", "removesuffix", "to_thread", "aclosing", "timeout", "TaskGroup", "Self"}
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & later
    [future] = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future.names[0].name == "annotations"
