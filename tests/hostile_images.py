"""Files of pictures: as encoders write them, and made byte by byte, which no encoder does."""

import io
import struct


def encode(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def segment(marker, body=b""):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def bits(pairs):
    text = "".join(f"{value:0{width}b}" for value, width in pairs)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


def jpeg_of_scans(num, side=256, between=b""):
    """A progressive JPEG, grey, one colour: a first scan, then `num` of a few bytes that walk over all blocks."""
    blocks = (side // 8) ** 2
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00")
    quant = segment(0xDB, b"\x00" + b"\x01" * 64)
    dc = segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00")  # one code: difference 0
    # EOB0, EOB9, EOB14: so many blocks are empty
    ac = segment(0xC4, b"\x10" + bytes([0, 3] + [0] * 14) + b"\x00\x90\xe0")
    runs, left = [], blocks
    for code, run_bits in ((0b10, 14), (0b01, 9), (0b00, 0)):
        while left >= 1 << run_bits:
            run = min(left, (2 << run_bits) - 1)
            runs += [(code, 2), (run - (1 << run_bits), run_bits)] if run_bits else [(code, 2)]
            left -= run
    first = segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + b"\x00" * (blocks // 8 + 1)
    again = segment(0xDA, b"\x01\x01\x10\x01\x3f\x00") + bits(runs)
    return b"\xff\xd8" + quant + frame + dc + ac + first + (between + again) * num + b"\xff\xd9"
