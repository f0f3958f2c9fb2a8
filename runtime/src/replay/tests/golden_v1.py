"""Writes golden_v1.hex from FORMAT.md alone: one example, then its removal, in words of 8 and segments of 256 bytes."""
import struct


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def content_key(prompt_len, tokens):
    mask = (1 << 64) - 1
    key = 0xCBF29CE484222325
    for value in [prompt_len, *tokens]:
        for byte in struct.pack("<I", value):
            key = (key ^ byte) * 0x100000001B3 & mask
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & mask
    key = (key ^ key >> 27) * 0x94D049BB133111EB & mask
    return key ^ key >> 31


def frame(records, link, first_id):
    payload = b"".join(records)
    head = struct.pack("<BBHI", 0xA5, 0, len(records), len(payload))
    tail = struct.pack("<IQ", link, first_id)
    crc = crc32c(head + tail + payload)
    whole = head + struct.pack("<I", crc) + tail + payload
    return whole + b"\xff" * (-len(whole) % 8), crc


header = b"MYNAHLOG" + struct.pack("<HHIQQQIHH", 1, 0, 256, 1, 1, 1, 0, 8, 0) + b"\xd1" * 32 + bytes(12)
header += struct.pack("<I", crc32c(header))
tokens = [1, 200, 3, 2]
coded = b"".join(map(varint, tokens))
task = b"math"
example = b"\x00" + varint(content_key(2, tokens)) + varint(1_700_000_000) + varint(len(task)) + task
example += varint(2) + varint(len(tokens)) + b"\x00" + varint(len(coded)) + coded
first, crc = frame([example], struct.unpack("<I", header[92:])[0], 1)
second, _ = frame([b"\x01" + varint(1)], crc, 2)
image = header + first + second
image += b"\xff" * (192 - len(image))
print("\n".join(image[at : at + 32].hex() for at in range(0, len(image), 32)))
