"""Everything is declared in pyproject.toml; only the two package roots are mapped here.

`prefkit_kernels` lives in `kernels/torch-ext/` because that is the folder layout of a Hugging Face
Hub kernel, so the same folder can be published there as it is.
"""

from setuptools import find_packages, setup

KERNELS = ["prefkit_kernels", "prefkit_kernels.*"]

setup(
    packages=[
        *find_packages(include=["prefkit", "prefkit.*"]),
        *find_packages("kernels/torch-ext", include=KERNELS),
    ],
    package_dir={"prefkit": "prefkit", "prefkit_kernels": "kernels/torch-ext/prefkit_kernels"},
    package_data={"prefkit": ["py.typed", "demo/assets/**/*"], "prefkit_kernels": ["py.typed"]},
    include_package_data=False,  # what is listed above, and nothing by chance
)
