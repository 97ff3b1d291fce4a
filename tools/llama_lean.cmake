# Read by CMake inside llama.cpp's project() when llama-cpp-python is built for the peer tests, which
# need libllama and libggml. llama-cpp-python forces the helper library of the command-line tools on
# through the cache; an ordinary variable hides the cached one.
set(LLAMA_BUILD_COMMON OFF)
