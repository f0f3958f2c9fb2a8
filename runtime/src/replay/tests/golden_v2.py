"""Reads golden_v2.hex by FORMAT.md alone, down to the coded tokens, and says what is in it."""
import struct
from pathlib import Path


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Reader:
    def __init__(self, data):
        self.data = data

    def take(self, count):
        assert count <= len(self.data)
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def column(self, count):
        least, width = self.varint(), self.take(1)[0]
        packed = int.from_bytes(self.take((count * width + 7) // 8), "little")
        return [least + (packed >> (at * width) & (1 << width) - 1) for at in range(count)]


def batch(payload, first_id, span):
    read = Reader(payload)
    version, flags = read.take(2)
    assert version == 0 and flags < 32
    table = read.varint()
    if table == 1:
        read.take(read.varint())
    removed, least = [], 0
    for _ in range(read.varint() if flags & 16 else 0):
        removed.append(least + read.varint())
        least = removed[-1] + 1
    count = read.varint() if flags & 1 else span - len(removed)
    if not count:
        return removed, [], read.data
    gaps = read.column(count) if flags & 1 else [0] * count
    tags = [read.take(read.varint()).decode() for _ in range(read.varint() if flags & 2 else 1)]
    tasks = read.column(count) if flags & 2 else [0] * count
    times, prompts, answers = read.column(count), read.column(count), read.column(count)
    keys = struct.unpack(f"<{count}H", read.take(2 * count))
    scores = read.column(count) if flags & 4 else [0] * count
    replays = read.column(count) if flags & 8 else [0] * count
    examples, next_id = [], first_id
    for gap, task, time, prompt, answer, key, score, count in zip(
        gaps, tasks, times, prompts, answers, keys, scores, replays
    ):
        nats = (score - 1) / 64 if score else None
        examples.append((next_id + gap, tags[task], time, prompt, answer, f"{key:04x}", nats, count))
        next_id += gap + 1
    return removed, examples, read.data


image = bytes.fromhex(Path(__file__).with_name("golden_v2.hex").read_text())
magic, version, flags, size, sequence, end_id, first_id, chain, word, zero = struct.unpack("<8sHHIQQQIHH", image[:48])
assert (magic, version, flags, zero, image[80:92]) == (b"MYNAHLOG", 2, 0, 0, bytes(12))
link, first_crc = struct.unpack("<I", image[92:96])[0], struct.unpack("<I", image[120:124])[0]
assert crc32c(image[:92]) == link and crc32c(image[92:124]) == struct.unpack("<I", image[124:128])[0]
print(f"segment of {size} bytes in words of {word}: sequence {sequence}, ids from {end_id}/{first_id}, chain {chain}")
at = 128
while at < len(image) and image[at] == 0xA5:
    _, codec, span, length, crc, previous, frame_id = struct.unpack("<BBHIIIQ", image[at : at + 24])
    payload = image[at + 24 : at + 24 + length]
    assert codec == 1 and previous == link and frame_id == first_id
    assert crc == crc32c(image[at : at + 8] + image[at + 12 : at + 24] + payload)
    assert at > 128 or crc == first_crc
    removed, examples, coded = batch(payload, frame_id, span)
    print(f"ids {frame_id} to {frame_id + span - 1}: removed {removed}, coded tokens {coded.hex() or 'none'}")
    for example in examples:
        print("  id {}, task {}, time {}, prompt {}, answer {}, key ..{}, score {}, replays {}".format(*example))
    link, first_id = crc, frame_id + span
    at += -(-(24 + length) // word) * word
assert set(image[at:]) <= {0xFF}
