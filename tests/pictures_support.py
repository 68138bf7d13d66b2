"""Picture files that Pillow does not write itself."""

import base64
import struct
import zlib

import numpy as np

# A drawn picture of 32x24, red to the right, green downwards, to be turned by 90 degrees: what
# pillow-heif wrote; the reader used here cannot write.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAA"
    "AAAAAAAAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB6wABAAAAAAAAAXUAAgAAAAADYAABAAAAAAAAACQA"
    "AAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRt"
    "AAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/"
    "/wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAAD"
    "AIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAA"
    "IAAAAAEAAAAYAAAAAf///+AAAAAC////2AAAAAIAAAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAAGWlwbWEA"
    "AAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAABoW1kYXQAAAFxKAGvBjIf53hQ"
    "iQXCnUzP5Dj0bk+RGIuRz5AaQXXWicc9d2IvrXYf/fN5VL7D1/gHcbdbeydR9yLn1aWp5ARMa6YgIyO3fL14"
    "yuMbssbJMKQ5Kfo9WSbkRTQeDD0GacRME1ZLtZe4YjqW/pSyNWoP0YIE8Vrm/D14TGkevJP/s7H/SnZlx/Q7"
    "n5iMxQFYE6WsXBjaQzo5rRcN2jAL3cjvX+z5AMnZdOG78kfyXFIx6bvAYWQdWscV/o6GHfh/jqDSzBe7krYX"
    "4ICRoeEfepZ2FjHx/Y/gi+CR4Wkw++rkdGOcmRyWwJ3DcbWZEMEX4v/C6oH2EmXD/l/Wm51c/+imeiLhAdjc"
    "MospIaVcNrXGcpZdyHHKwih8O6L/hdOj0pSoJ4n9e+QxhBV4tk6eBctaLqp3k2SiE2fkdIWcKlh9GSWg4zzy"
    "v274UIN1Q1g1FeF4XRtjHGbOBtvwlrdXc15Gn0zoGL4QKszXLEGvr71iyKRcAAAABkV4aWYAAE1NACoAAAAI"
    "AAEBEgADAAAAAQAGAAAAAAAA"
)


def heic_picture() -> np.ndarray:
    """What the HEIC file shows, upright: uint8 (32, 24, 3)."""
    rows, columns = np.mgrid[0:24, 0:32]
    red, green = 255 * columns / 31, 255 * rows / 23
    lying = np.stack([red, green, np.full((24, 32), 40.0)], axis=-1).astype(np.uint8)
    return np.rot90(lying, -1)


def png(values: np.ndarray, color: int) -> bytes:
    """A 16-bit PNG file, which Pillow does not write: (H, W) or (H, W, channels)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">L", len(content)) + checked + struct.pack(">L", zlib.crc32(checked))

    rows = values.astype(">u2").reshape(len(values), -1)
    # Each row stores its difference from the one before (filter 2), as encoders do.
    raw = rows.view(np.uint8)
    packed = b"".join(
        b"\x02" + (raw[k] - (raw[k - 1] if k else 0)).astype(np.uint8).tobytes()
        for k in range(len(raw))
    )
    header = struct.pack(">LLBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def profile(primaries: tuple[tuple[float, float], ...], gamma: float = 2.2) -> bytes:
    """An ICC matrix profile of given red, green and blue (CIE xy), white D65."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    white = xyz(0.3127, 0.3290)
    columns = np.stack([xyz(*xy) for xy in primaries], axis=1)
    columns = columns * np.linalg.solve(columns, white)
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    columns = np.linalg.inv(bradford) @ scale @ bradford @ columns

    def fixed(values: np.ndarray) -> bytes:
        return b"".join(struct.pack(">l", round(float(v) * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">LH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">L", 5) + b"test\0" + bytes(78) + bytes(1)
    rights = b"text" + bytes(4) + b"none\0" + bytes(3)
    blocks = [(b"desc", text), (b"cprt", rights), (b"wtpt", b"XYZ " + bytes(4) + fixed(d50))]
    for letter, column in zip(b"rgb", columns.T, strict=True):
        name = bytes([letter])
        blocks += [(name + b"XYZ", b"XYZ " + bytes(4) + fixed(column)), (name + b"TRC", curve)]
    start = 128 + 4 + 12 * len(blocks)
    table, body = struct.pack(">L", len(blocks)), b""
    for name, block in blocks:
        block += bytes(-len(block) % 4)
        table += name + struct.pack(">LL", start + len(body), len(block))
        body += block
    head = struct.pack(
        ">L4sL4s4s4s", start + len(body), bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + fixed(d50) + bytes(48)
    return head + table + body


DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
