# SPDX-License-Identifier: Apache-2.0
"""The hand of the test bed inside an emulated machine.

It serves one virtio-serial port, which works however the node's network is cut. Frames go both
ways: a four-byte big-endian length, then that many bytes, of which the first eight are the
request's number and the ninth its kind. Requests run in threads of their own and answers come in
the order they finish, so a slow command blocks nobody.

  'X' to the node:   time-out in ms (4 bytes), then the arguments, NUL after each
  'W' to the node:   mode (4 bytes), length of the path (4 bytes), the path, the contents
  'H' from the node: hello, sent once; the number is 0
  'R' from the node: exit status (4 bytes, 128 + signal; 124 after a time-out), length of the
                     standard output (4 bytes), standard output, standard error

Only built-in and small modules are imported: under emulation each import costs milliseconds.
"""
import _thread
import os
import select
import signal
import struct
import sys
import time

PORT_NAME = "bed.exec"
LARGEST_OUTPUT = 32 << 20


def port_path():
    for port in os.listdir("/sys/class/virtio-ports"):
        with open("/sys/class/virtio-ports/" + port + "/name") as name:
            if name.read().strip() == PORT_NAME:
                return "/dev/" + port
    raise SystemExit("node-agent: no virtio-serial port is called " + PORT_NAME)


PORT = os.open(port_path(), os.O_RDWR | os.O_CLOEXEC)
SENDING = _thread.allocate_lock()


def read_exactly(count):
    parts = []
    while count:
        part = os.read(PORT, min(count, 65536))
        if not part:
            # Nobody holds the other end just now.
            time.sleep(0.05)
            continue
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def send(number, kind, body):
    frame = memoryview(struct.pack(">IQc", len(body) + 9, number, kind) + body)
    with SENDING:
        while frame:
            frame = frame[os.write(PORT, frame[:65536]):]


def answer(number, status, output=b"", errors=b""):
    send(number, b"R", struct.pack(">II", status, len(output)) + output + errors)


def spawn(arguments, output, errors):
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawnp(
            arguments[0], arguments, os.environ, setsid=True,
            setsigdef=[signal.SIGPIPE],
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 0),
                          (os.POSIX_SPAWN_DUP2, output, 1),
                          (os.POSIX_SPAWN_DUP2, errors, 2)])
    finally:
        os.close(nothing)


def collect(pid, ends, deadline):
    """Reads both pipes until the command has ended; kills its session when time is up.

    A daemon that the command leaves behind may hold the pipes open for ever: so the end of the
    command counts, and what is in the pipes then.
    """
    texts = {end: bytearray() for end in ends}
    still_open = set(ends)
    handle = os.pidfd_open(pid)
    late = False
    try:
        while True:
            left = deadline - time.monotonic()
            ready = select.select(list(still_open) + [handle], [], [], max(left, 0))[0]
            if not ready and not late:
                late = True
                os.killpg(pid, signal.SIGKILL)
                deadline = time.monotonic() + 5
                continue
            read_something = False
            for end in [end for end in ready if end != handle]:
                part = os.read(end, 65536)
                if not part:
                    still_open.discard(end)
                elif len(texts[end]) < LARGEST_OUTPUT:
                    texts[end] += part
                read_something = True
            if not read_something and (handle in ready or late):
                break
    finally:
        os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 124 if late else code if code >= 0 else 128 - code
    return status, bytes(texts[ends[0]]), bytes(texts[ends[1]])


def execute(number, body):
    try:
        limit_ms = struct.unpack_from(">I", body)[0]
        arguments = body[4:].split(b"\0")[:-1]
        output, output_end = os.pipe2(os.O_CLOEXEC)
        errors, errors_end = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                pid = spawn(arguments, output_end, errors_end)
            finally:
                os.close(output_end)
                os.close(errors_end)
            result = collect(pid, (output, errors), time.monotonic() + limit_ms / 1000)
        finally:
            os.close(output)
            os.close(errors)
        answer(number, *result)
    except Exception as problem:
        answer(number, 127, b"", ("node-agent: %s" % problem).encode())


def write_file(number, body):
    try:
        mode, length = struct.unpack_from(">II", body)
        path = body[8:8 + length]
        os.makedirs(os.path.dirname(path) or b"/", exist_ok=True)
        new = path + b".bed-new"
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(body)[8 + length:]
            while rest:
                rest = rest[os.write(file, rest):]
            os.fchmod(file, mode)
        finally:
            os.close(file)
        os.rename(new, path)
        answer(number, 0)
    except Exception as problem:
        answer(number, 1, b"", ("node-agent: %s" % problem).encode())


def main():
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ.update(HOME="/root", LANG="C.UTF-8", TERM="dumb")
    send(0, b"H", b"")
    kinds = {b"X": execute, b"W": write_file}
    while True:
        frame = read_exactly(struct.unpack(">I", read_exactly(4))[0])
        number, kind = struct.unpack_from(">Qc", frame)
        work = kinds.get(kind)
        if work is None:
            answer(number, 127, b"", b"node-agent: unknown kind of request")
        else:
            _thread.start_new_thread(work, (number, frame[9:]))


if __name__ == "__main__":
    sys.exit(main())
