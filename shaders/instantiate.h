// Instantiate a kernel template under the name by which the host finds it. The name is a whole
// string in every line, for readers and for the tool that lists the kernels.
#ifndef OXB_INSTANTIATE_H
#define OXB_INSTANTIATE_H

#define OXB_KERNEL(name, ...) \
    template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

#endif
