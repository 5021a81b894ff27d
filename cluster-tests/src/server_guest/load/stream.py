# SPDX-License-Identifier: Apache-2.0
# One TCP connection to a server that sends everything back, for ever. Every 8 bytes are their own position in the stream, so what
# comes back shows whether a byte was lost, doubled or changed on either way. Says how many bytes have come back in a file.
# A wrong byte, an end or an error of the connection ends it.
# Arguments: address, port, that file.
import os, socket, struct, sys, threading, time

WORDS = 512  # in a block
WINDOW = 64 * 1024  # bytes on their way
PAUSE = 0.05  # seconds between two blocks: a load, not a flood

address, port, shown = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connection = socket.create_connection((address, port))
back = 0


def block(number):
    return struct.pack(f'>{WORDS}Q', *range(number * WORDS, (number + 1) * WORDS))


def send():
    number = 0
    try:
        while True:
            while number * WORDS * 8 - back > WINDOW:
                time.sleep(PAUSE)
            connection.sendall(block(number))
            number += 1
            time.sleep(PAUSE)
    except BaseException as error:
        print(f'sending after {back} bytes: {error!r}', file=sys.stderr, flush=True)
        os._exit(1)


threading.Thread(target=send, daemon=True).start()
written = 0
while True:
    wanted = block(back // (WORDS * 8))
    got = connection.recv(len(wanted), socket.MSG_WAITALL)
    if got != wanted:
        sys.exit(f'after {back} bytes came {len(got)}: {got[:64].hex()}, not {wanted[:64].hex()}')
    back += len(got)
    if time.monotonic() - written > 0.5:
        written = time.monotonic()
        with open(shown + '.new', 'w') as file:
            print(back, file=file)
        os.rename(shown + '.new', shown)
