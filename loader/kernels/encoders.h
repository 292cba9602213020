// The whole-column encoder, in the order in which its parts build on each other; part of host.cpp, after encoder.h.
#include "cascade.h"
#include "values.h"
#include "dictionary.h"
#include "lists.h"
#include "shred.h"
#include "columns_encoder.h"
#include "segment_writer.h"
#include "key_index.h"
