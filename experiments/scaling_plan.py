"""What the cost model of scaling.py says of the paper preset on many GPUs.

Every figure below has its source; docs/scaling.md explains them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GPUS = (8, 64, 512)
CLASSES, PER_CLASS, IMAGES = 1_000, 32, 1_000_000
KIB, GB = 1024, 1e9
START = 19.0  # seconds: Ray and models; one H200, 16 CPU cores: 10 to 19 s
WEIGHTS, GPUS_PER_MACHINE, SHARED = 5e9, 8, 2e9  # bytes; bytes a second of a shared file system
COMPILE = 40.0  # seconds: Stable Diffusion, once a worker; accelerator.py on that H200


@dataclass(frozen=True)
class Rates:
    """Seconds and bytes of the paper preset, bfloat16 but for the encoder.

    Attributes:
        draw: seconds of a drawn image: 3.15 images/s in batches of 8 (accelerator.py, one H200).
        mask: seconds of its mask: SAM encodes in 0.023 s; its few points are assumed to take
            0.005 s, where a grid of 1,024 takes 0.11 s (docs/accelerators.md).
        encode: seconds of DINOv2: 126 images/s in float32 (accelerator.py, one H200).
        propose: seconds of SAM's proposals: 5.48 images/s by 4 workers that share an H200 with 16
            CPU cores (a worker alone: 2.06, eight: 6.28).
        class_bytes: of a class of 32 images: 450 KiB a drawn photograph as PNG and 3 KiB a mask
            (assumed), 3 x 768 features and 64 x 64 attention in float32 an image.
        class_files: two pictures an image, and two files.
        name: seconds of matching, counting and writing an image: 0.041 s of a CPU core (scaling.py
            --only evaluation), by four workers at once.
        image_bytes: 45 KiB of proposals and 290 KiB of features, 100 regions (docs/regions.md).
    """

    draw: float = 1 / 3.15
    mask: float = 0.023 + 0.005
    encode: float = 1 / 126
    propose: float = 1 / 5.48
    name: float = 0.041 / 4
    class_bytes: float = PER_CLASS * (450 + 3 + 9 + 16) * KIB
    class_files: int = 2 * PER_CLASS + 2
    image_bytes: float = (45 + 290) * KIB

    @property
    def class_seconds(self) -> float:
        """Seconds of a GPU for a class."""
        return PER_CLASS * (self.draw + self.mask + self.encode)

    @property
    def image_seconds(self) -> float:
        """Seconds of a GPU for an image."""
        return self.propose + self.encode + self.name


@dataclass(frozen=True)
class Driver:
    """Seconds of what one process or one folder does, however many GPUs there are.

    All are measured by scaling.py on one CPU core and a local disk, as docs/scaling.md prints them.

    Attributes:
        bank: of a class, in putting a bank together: 8 clusters (`printed`); `rimjax` takes 0.010.
        hand_out: of handing out a unit: 0.4 ms, and 0.4 ms where 2,048 workers are waited for.
        receive: of writing an image that a worker sent back: features 6 ms, proposals 4 ms
            (assumed).
        join: of joining an image's features to a part.
        record: of writing down an image's result, and which worker gave it.
        header: of reading the header of a part of 256 images.
    """

    bank: float = 0.043
    hand_out: float = 0.0008
    receive: float = 0.010
    join: float = 0.0043
    record: float = 0.0015
    header: float = 0.00018


def print_plan() -> None:
    """Print the plan's tables."""
    rates, driver = Rates(), Driver()
    print(f"{CLASSES:,} classes x {PER_CLASS} images, a worker a GPU\n")
    print("| GPUs | start | drawing | the driver's bank | in all | GPU hours | written | to disk |")
    print("|---|---|---|---|---|---|---|---|")
    size = CLASSES * rates.class_bytes
    for gpus in GPUS:
        drawing = math.ceil(CLASSES / gpus) * rates.class_seconds
        bank = CLASSES * driver.bank
        whole = START + COMPILE + drawing + bank
        hours = gpus * (START + COMPILE + drawing) / 3600
        print(
            f"| {gpus} | {START + COMPILE:.0f} s | {drawing:,.0f} s | {bank:,.0f} s "
            f"| {whole / 60:.1f} min | {hours:.1f} | {size / GB:.1f} GB "
            f"| {size / drawing / 1e6:,.0f} MB/s |"
        )
    print(f"\n{IMAGES:,} images, four workers a GPU\n")
    print("| GPUs | images/s | hours | GPU hours | kept | to disk |")
    print("|---|---|---|---|---|---|")
    size = IMAGES * rates.image_bytes
    for gpus in GPUS:
        rate = gpus / rates.image_seconds
        seconds = START + IMAGES / rate
        written = 2 * size / seconds  # once alone, once in a part
        print(
            f"| {gpus} | {rate:,.0f} | {seconds / 3600:.2f} | {gpus * seconds / 3600:.1f} "
            f"| {size / GB:.0f} GB | {written / 1e6:,.0f} MB/s |"
        )
    print("\n| what | images/s | keeps up with |\n|---|---|---|")
    parts = IMAGES / 256
    limits = {
        "the driver writes what workers send back": 1 / driver.receive,
        "a network of 10 Gbit/s to the driver, likewise": 1.25e9 / rates.image_bytes,
        "one driver hands out units to 2,048 workers": 1 / (driver.hand_out + driver.record),
        "one process at a time joins files to parts": 1 / driver.join,
        "a shared file system of 2 GB/s": SHARED / (2 * rates.image_bytes),
    }
    for what, rate in sorted(limits.items(), key=lambda pair: pair[1]):
        print(f"| {what} | {rate:,.0f} | {rate * rates.image_seconds:,.0f} GPUs |")
    print(
        f"\n{IMAGES:,} images lie in {parts:,.0f} parts of each archive. Reading all headers takes "
        f"{2 * parts * driver.header:.1f} s."
    )
    machines = {gpus: math.ceil(gpus / GPUS_PER_MACHINE) for gpus in GPUS}
    listed = ", ".join(f"{n}: {n * WEIGHTS / SHARED:,.0f} s" for n in machines.values())
    print(f"Weights of 5 GB, read once a machine from that file system, by machines: {listed}.")
