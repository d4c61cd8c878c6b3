"""How many bits do keys need, so that the keys picked hold the attention mass of the exact ones?"""

from pathlib import Path

import topkit

TENSORS = Path(topkit.__file__).parent / "data" / "smollm2" / "tensors.safetensors"

capture = topkit.Capture.open(TENSORS)  # five layers of SmolLM2 over 4,096 tokens
indexers = {
    "8 bits": "quantized:dtype=int8",
    "4 bits": "quantized:dtype=int4",
    "2 bits": "quantized:dtype=int2",
    "2 bits, rotated, without the mean": "quantized:dtype=int2,hadamard=true,center=true",
    "1 bit": "sign",
    "1 bit, rotated, without the mean": "sign:hadamard=true,center=true",
}
measured = topkit.measure(capture, list(indexers.values()), k=64)
found = {row["indexer"]: row for row in measured.summary()}
print(f"{'keys of':36}recall  mass, of the exact keys'")
for name, spec in indexers.items():
    row = found[repr(topkit.indexer(spec))]
    print(f"{name:36}{row['recall']:6.2f}  {row['mass_ratio']:6.2f}")
