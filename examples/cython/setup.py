"""Build of the extension module. The .pxd files are found where oxibonsai is installed."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import oxibonsai

# oxibonsai is called through a table of functions: nothing is linked, only its headers are needed.
product = Extension("product", ["product.pyx"], include_dirs=[oxibonsai.get_include()])
setup(ext_modules=cythonize([product], build_dir="build", language_level=3))
