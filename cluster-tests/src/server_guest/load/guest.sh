# SPDX-License-Identifier: Apache-2.0
# Makes the server busy: a program that sends back what it gets, blocks that are written, read back and compared, and a compiler whose
# result must always be the same. Each is a unit that ends in failure when something is wrong, and counts its rounds in a file.
# $1 the port of the echo.
set -eu
mkdir -p /run/load /var/tmp/load
cat >/run/load/echo.py <<'END'
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(('', int(sys.argv[1])), Echo).serve_forever()
END
cat >/run/load/fio.sh <<'END'
set -eu
round=0
while :; do
  round=$((round + 1))
  # Each round writes other bytes, so that what an earlier one left is not taken for this one's.
  fio --name=load --filename=/var/tmp/load/blocks --size=1m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 \
    --randseed=$round --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal >/run/load/fio.log 2>&1
  echo $round >/run/load/fio
done
END
cat >/run/load/compile.sh <<'END'
set -eu
cd /var/tmp/load
i=0
while [ $i -lt 30 ]; do
  i=$((i + 1))
  echo "double f$i(const double *a, int n) { double s = $i; for (int i = 0; i < n; i++) s += a[i] * s / (i + $i); return s; }"
done >many.c
cc -O2 -c -o first.o many.c
round=0
while :; do
  round=$((round + 1))
  cc -O2 -c -o next.o many.c
  cmp first.o next.o
  echo $round >/run/load/compile
done
END
systemd-run -q --unit=load-echo python3 /run/load/echo.py "$1"
systemd-run -q --unit=load-fio sh /run/load/fio.sh
systemd-run -q --unit=load-compile sh /run/load/compile.sh
timeout 120 sh -c "until ss -Hltn 'sport = :$1' | grep -q .; do sleep 0.2; done"
