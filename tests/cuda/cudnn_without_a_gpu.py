"""Ask the real cuDNN which plans it has for an H200, with no GPU: ``python cudnn_without_a_gpu.py FILE``.

cuDNN takes the properties of a device from a text, and its libraries load where one of the driver's name is there (see
``test_cudnn_library.py``). Plans are built, and cannot be executed. FILE has a list of problems; printed are the names
of their plans.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nnfast.kernels.cuda.cudnn_graphs import Convolution, CudnnError, Library, Plan, find

# An H200's, under cuDNN's own names for them; sizes in bytes, clocks in kHz
H200 = {
    "deviceName": "NVIDIA H200",
    "deviceVer": 900,
    "driverVer": 13000,
    "multiProcessorCount": 132,
    "smCountOrigin": 0,
    "warpSize": 32,
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "regsPerBlock": 65536,
    "maxRegistersPerSM": 65536,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000,
    "memoryBusWidth": 6144,
    "l2CacheSize": 62914560,
    "totalGlobalMem": 150000000000,
    "pciDeviceId": 0x2335,
    "cudaDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
}


#: Exit status where there is nothing to ask
NO_LIBRARY = 77


class Described(Library):
    """cuDNN for a device that is not there."""

    def __init__(self, cudnn: Any, properties: dict[str, Any]) -> None:
        self.cudnn = cudnn
        self.device = self.cudnn.create_device_properties(json.dumps(properties))

    def graph(self, **types: Any) -> Any:
        return self.cudnn.pygraph(device_property=self.device, sm_version=90, **types)


def main() -> None:
    try:
        library = Described(find(), H200)
    except OSError as error:
        print(error)
        sys.exit(NO_LIBRARY)
    found = []
    for fields in json.loads(Path(sys.argv[1]).read_text()):
        problem = Convolution(**{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()})
        try:
            found.append([name for _, name in Plan(library, problem).candidates(128 << 20)])
        except CudnnError as error:
            found.append(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
