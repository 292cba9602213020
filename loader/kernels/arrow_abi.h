// The Arrow C data interface, which encoders read tables by and look-ups hand rows over by.
#pragma once
#include "lanes.cuh"

extern "C" {

// https://arrow.apache.org/docs/format/CDataInterface.html
struct ArrowSchema {
    const char *format, *name, *metadata;
    i64 flags, num_children;
    ArrowSchema** children;
    ArrowSchema* dictionary;
    void (*release)(ArrowSchema*);
    void* private_data;
};

struct ArrowArray {
    i64 length, null_count, offset, num_buffers, num_children;
    const void** buffers;
    ArrowArray** children;
    ArrowArray* dictionary;
    void (*release)(ArrowArray*);
    void* private_data;
};
}
