"""How a registry may lie, break, stall or lead astray, by name: each spoils one answer of a `FaultProxy`."""

import gzip
import json

from fault_proxy import Answer, Fault, endless, position_of
from store_adapters import ia3_files

BOUND_SECONDS = 100.0  # within which every transfer ends, whatever the fault
BOMB = gzip.compress(bytes(64 << 20))
POSITIONS = ("first", "middle", "last")


def flipped(where: str) -> Fault:
    def fault(answer: Answer) -> None:
        at = position_of(where, len(answer.body))
        answer.write(answer.head() + answer.body[:at] + bytes([answer.body[at] ^ 4]) + answer.body[at + 1 :])

    return fault


def cut(where: str) -> Fault:
    """The connection ends before the body does."""
    return lambda answer: answer.write(answer.head() + answer.body[: position_of(where, len(answer.body))])


def shortened(where: str) -> Fault:
    """As `cut`, but with a Content-Length that says so."""

    def fault(answer: Answer) -> None:
        body = answer.body[: position_of(where, len(answer.body))]
        answer.write(answer.head(Content_Length=str(len(body))) + body)

    return fault


def stalled(where: str) -> Fault:
    def fault(answer: Answer) -> None:
        answer.write(answer.head() + answer.body[: position_of(where, len(answer.body))])
        answer.hold(BOUND_SECONDS)

    return fault


def lengthened(answer: Answer) -> None:
    body = answer.body + b"more"
    answer.write(answer.head(Content_Length=str(len(body))) + body)


def without_end(answer: Answer) -> None:
    """The true bytes, and then others for as long as anyone takes them; no length is given."""
    answer.write(answer.head(Content_Length="") + answer.body)
    for chunk in endless(b"x" * 65_536):
        answer.write(chunk)


def without_end_in_chunks(answer: Answer) -> None:
    answer.write(answer.head(Content_Length="", Transfer_Encoding="chunked"))
    for chunk in endless(b"10000\r\n" + b"x" * 65_536 + b"\r\n"):
        answer.write(chunk)


def dripping(answer: Answer) -> None:
    """Never silent for long, and never done."""
    answer.write(answer.head())
    for byte in answer.body:
        answer.write(bytes([byte]))
        answer.hold(0.05)


def compressed(answer: Answer) -> None:
    answer.write(answer.head(Content_Length=str(len(BOMB)), Content_Encoding="gzip") + BOMB)


def replaced(answer: Answer) -> None:
    """Sound bytes, of another adapter."""
    body = ia3_files(5)["adapter_model.safetensors"]
    answer.write(answer.head(Content_Length=str(len(body))) + body)


def length(value: str) -> Fault:
    return lambda answer: answer.write(answer.head(Content_Length=value) + answer.body)


def two_lengths(answer: Answer) -> None:
    answer.write(answer.head().replace(b"\r\n\r\n", b"\r\nContent-Length: 7\r\n\r\n") + answer.body)


def dropped(answer: Answer) -> None:
    """The connection ends without a word."""


def silent(answer: Answer) -> None:
    answer.hold(BOUND_SECONDS)


def garbled(answer: Answer) -> None:
    answer.write(b"SSH-2.0-OpenSSH_9.9\r\n\x00\x01\x02")


def half_a_head(answer: Answer) -> None:
    answer.write(answer.head()[:40])
    answer.hold(BOUND_SECONDS)


def dripping_head(answer: Answer) -> None:
    for byte in answer.head():
        answer.write(bytes([byte]))
        answer.hold(0.05)


def headers_without_end(answer: Answer) -> None:
    answer.write(b"HTTP/1.1 200 OK\r\n")
    for chunk in endless(b"X-More: " + b"x" * 4000 + b"\r\n"):
        answer.write(chunk)


def continued_without_end(answer: Answer) -> None:
    for chunk in endless(b"HTTP/1.1 100 Continue\r\n\r\n"):
        answer.write(chunk)
        answer.hold(0.01)


def status(code: int, **headers: str) -> Fault:
    def fault(answer: Answer) -> None:
        answer.status = code
        answer.headers = {"Content-Length": "0"}
        answer.write(answer.head(**headers))

    return fault


def redirect(to: str) -> Fault:
    return status(307, Location=to)


BODY_FAULTS: dict[str, Fault] = {
    **{f"flipped at the {where} byte": flipped(where) for where in POSITIONS},
    **{f"cut at the {where} byte": cut(where) for where in POSITIONS},
    **{f"shortened to the {where} byte": shortened(where) for where in POSITIONS},
    **{f"stalled at the {where} byte": stalled(where) for where in ("first", "last")},
    "lengthened": lengthened,
    "without end": without_end,
    "chunks without end": without_end_in_chunks,
    "dripping": dripping,
    "compressed": compressed,
    "replaced": replaced,
}
HEAD_FAULTS: dict[str, Fault] = {
    **{f"Content-Length {value}": length(value) for value in ("999999999999999", "-1", "many", "3")},
    "two lengths": two_lengths,
    "dropped": dropped,
    "silent": silent,
    "garbled": garbled,
    "half a head": half_a_head,
    "a dripping head": dripping_head,
    "headers without end": headers_without_end,
    "100 Continue without end": continued_without_end,
    **{f"status {code}": status(code) for code in (204, 206, 301, 304, 400, 401, 403, 418, 429, 502, 503, 504)},
    "a token from anywhere": status(401, WWW_Authenticate='Bearer realm="http://169.254.169.254/token",service="x"'),
    "a token from a file": status(401, WWW_Authenticate='Bearer realm="file:///etc/passwd",service="x"'),
    "a password in the clear": status(401, WWW_Authenticate='Basic realm="x"'),
    "redirected to the cloud's metadata": redirect("http://169.254.169.254/latest/meta-data/"),
    "redirected to the cloud's metadata by TLS": redirect("https://169.254.169.254/latest/meta-data/"),
    "redirected to a file": redirect("file:///etc/passwd"),
    "redirected to another port": redirect("http://127.0.0.1:1/"),
    "redirected by ftp": redirect("ftp://127.0.0.1/"),
    "redirected in the clear": redirect("http://registry.example/v2/"),
    "redirected to nowhere": redirect(""),
    "redirected to itself": redirect("?again"),
    "redirected to nonsense": redirect("http://[::bad"),
}


def another_digest(answer: Answer) -> None:
    document = json.loads(answer.body)
    document["manifests"][0]["digest"] = f"sha256:{'0' * 64}"
    body = json.dumps(document).encode()
    answer.write(answer.head(Content_Length=str(len(body))) + body)


REFERRERS_FAULTS: dict[str, Fault] = {
    "another referrer": another_digest,
    "referrers garbled": lambda answer: answer.write(answer.head() + answer.body[:-1] + b"?"),
    "referrers without end": without_end_in_chunks,
}
# Those that end when somebody has waited enough. All others are found out, and are not to be taken for silence.
WAITING = ("stalled", "dripping", "silent", "half a head", "a dripping head", "100 Continue")
