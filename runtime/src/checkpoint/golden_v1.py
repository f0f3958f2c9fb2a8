"""Writes golden_v1.hex from FORMAT.md alone: a published revision with two sections."""
import struct


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def padded(data):
    return data + bytes(-len(data) % 64)


sections = [(b"state", 0, b"hello"), (b"fast", 1, struct.pack("<2f", 1.0, -2.5))]
offset = 128 + 64 * len(sections)
table = body = b""
for name, encoding, data in sections:
    table += name.ljust(32, b"\0") + struct.pack("<QQIB11x", offset, len(data), crc32c(data), encoding)
    body += padded(data)
    offset += len(padded(data))
header = b"MYNAHREV" + struct.pack("<HBBIQQQQ", 1, 2, 0, len(sections), 1, 0, 1_700_000_000, offset + 16)
header += b"\xb5" * 32 + b"\x70" * 32 + struct.pack("<I8x", crc32c(table))
header += struct.pack("<I", crc32c(header))
end = b"MYNAHEND" + struct.pack("<II", crc32c(header + table), 0)
image = header + table + body + end
print("\n".join(image[at : at + 32].hex() for at in range(0, len(image), 32)))
