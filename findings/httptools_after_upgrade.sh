#!/usr/bin/env bash
# httptools 0.9.0: after an offer to upgrade with `Connection: close`, a parser ignores all further requests.
#
# `feed_data` raises HttpParserUpgrade at a request that offers an upgrade. A server may ignore the offer and
# answer over HTTP/1.1 (RFC 9110, 7.8), and one might expect that the parser then takes the next request. It does
# if the request had `Connection: Upgrade`. With `Connection: close, Upgrade`, which clients send that do not
# reuse their connections, `feed_data` returns without an error and calls nothing, for the rest of its life.
# `lenient_data_after_close`, which uvicorn sets, changes nothing.
#
# Seen: URLs of the requests after the offer: [b'/b'] with `Connection: Upgrade`, [] with `Connection: close,
# Upgrade`, [b'/b'] again after a second call of `__init__`.
#
# Why it matters here: the service ignores offers of h2c, as Java's HttpClient sends them, by feeding the head
# again without the offer. Without a new start of the parser the body of such a request was lost silently
# (`service/http/heads.py`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet httptools==0.9.0

cat >"$folder/upgrade.py" <<'PY'
import sys

from httptools import HttpParserUpgrade, HttpRequestParser

NEXT = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"


class Requests:
    def __init__(self):
        self.urls = []

    def on_url(self, url):
        self.urls.append(url)


def urls_after_offer(connection, restart=False):
    requests = Requests()
    parser = HttpRequestParser(requests)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    offer = f"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: {connection}\r\n\r\n"
    try:
        parser.feed_data(offer.encode())
    except HttpParserUpgrade:
        requests.urls.clear()
    if restart:
        parser.__init__(requests)
    parser.feed_data(NEXT)
    return requests.urls


kept = urls_after_offer("Upgrade")
closed = urls_after_offer("close, Upgrade")
restarted = urls_after_offer("close, Upgrade", restart=True)
print("requests after an offer with Connection: Upgrade                     ", kept)
print("requests after an offer with Connection: close, Upgrade              ", closed)
print("requests after an offer with Connection: close, Upgrade, and __init__", restarted)
sys.exit(0 if (kept, closed, restarted) == ([b"/b"], [], [b"/b"]) else "the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/upgrade.py"
