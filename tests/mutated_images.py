"""Reads some hundred damaged image files: run as a process, so that its memory and what it prints can be watched.

Prints JSON: how many files were read and refused, what else happened, the slowest read, and how much memory grew.
"""

import json
import resource
import struct
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from hta.errors import UserError
from hta.images import image_size, read_image
from tests.data.trees import smooth
from tests.fuzzing import TIMES

FILES = 420 * TIMES


def originals():
    """Small files of every format, layout and compression that can be written."""
    picture, wide = Image.fromarray(smooth((40, 48))), smooth((40, 48)) * np.uint16(257)
    kinds = [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("PPM", {}),
    ]
    kinds += [("WEBP", {"lossless": True}), ("PNG", {"mode": "P"}), ("PNG", {"mode": "RGBA"}), ("BMP", {"mode": "P"})]
    for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        kinds.append(("TIFF", {"compression": name}))
    kinds.append(("TIFF", {"compression": "group4", "mode": "1"}))
    for name, options in kinds:
        stream = BytesIO()
        mode = options.pop("mode", "RGB")
        picture.convert(mode).save(stream, name, **options)
        yield stream.getvalue()
    frames = [picture.rotate(angle) for angle in (90, 180)]
    for name in ("PNG", "TIFF", "WEBP", "MPO"):
        stream = BytesIO()
        picture.save(stream, name, save_all=True, append_images=frames)
        yield stream.getvalue()
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}, {"byteorder": ">"}):
        stream = BytesIO()
        tifffile.imwrite(stream, wide, photometric="rgb", **options)
        yield stream.getvalue()


def mutated(data, rng):
    """The file with flipped bits, an end missing, bytes put in or taken out, or a large number in its header."""
    data, kind = bytearray(data), rng.integers(5)
    place = int(rng.integers(len(data)))
    if kind == 0:
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = rng.bytes(rng.integers(1, 30))
    elif kind == 3:
        del data[place : place + int(rng.integers(1, 30))]
    else:
        value = int(rng.choice([0, 1, 255, 9000, 65535, 70000, 2**24, 2**31 - 1, 2**32 - 1]))
        place = int(rng.integers(4, min(len(data) - 4, 200)))
        data[place : place + 4] = struct.pack(rng.choice(["<I", ">I"]), value)
    return bytes(data)


def main(folder):
    rng, files, found = np.random.default_rng(16), list(originals()), {"read": 0, "refused": 0}
    odd, slowest, path = [], 0.0, Path(folder, "a.img")
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(FILES):
        path.write_bytes(mutated(files[number % len(files)], rng))
        start = time.perf_counter()
        for reader in (read_image, image_size):
            try:
                result = reader(path)
                if reader is read_image:
                    found["read"] += 1
                    good = (
                        result.dtype == np.float32
                        and result.shape[2:] == (3,)
                        and 0 <= result.min() <= result.max() <= 1
                    )
                    odd += [] if good else [f"{number}: {result.shape}"]
            except UserError as error:
                found["refused"] += reader is read_image
                odd += [f"{number}: {error}"] if "\n" in str(error) else []
            except BaseException as error:  # noqa: BLE001
                odd.append(f"{number}: {type(error).__name__} {error}")
        slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first) // 1024
    sys.stdout.write(json.dumps(found | {"odd": odd, "slowest_s": slowest, "grown_mib": grown}))


if __name__ == "__main__":
    main(sys.argv[1])
