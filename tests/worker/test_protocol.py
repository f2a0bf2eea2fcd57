import pytest

from worker.protocol import Progress, ProtocolError, Refused, Started, Succeeded, decode, encode


@pytest.mark.parametrize(
    "event", [Started(("rlimits", "no_network")), Progress("sweep", 1, 2), Succeeded(), Refused("bad_file", "No.")]
)
def test_what_is_encoded_is_decoded(event):
    assert encode(event).endswith(b"\n")
    assert decode(encode(event)) == event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"event":"started","protections":"all of them"}',
        b'{"event":"started","protections":["Two words"]}',
        b'{"event":"started","protections":[1]}',
        b'{"event":"progress","phase":"sweep","done":2,"total":1}',
        b'{"event":"progress","phase":"sweep","done":-1,"total":1}',
        b'{"event":"progress","phase":"sweep","done":"1","total":1}',
        b'{"event":"refused","code":"Not A Code","message":""}',
        b'{"event":"refused","code":"code"}',
        b'{"event":"published"}',
    ],
)
def test_anything_else_is_refused(line):
    with pytest.raises(ProtocolError):
        decode(line)


def test_a_sentence_is_cut_to_its_limit():
    assert decode(encode(Refused("code", "x" * 5000))) == Refused("code", "x" * 2000)
