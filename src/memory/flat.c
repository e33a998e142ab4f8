/*-------------------------------------------------------------------------
 * flat.c
 *		Structs that point at each other, as one stretch of bytes.
 *
 * What is cached in shared memory is copied out by each session, to wherever it
 * has room.  So a pointer in a flat value is the offset of its target from the
 * value's start, and with the value goes a list of where its pointers are (NULL
 * is not listed).  flat_resolve makes them pointers,
 * in the place where the bytes have come to lie.
 *
 * A value grows as it is built, and may move: it is spoken of by offsets.
 *-------------------------------------------------------------------------
 */
#include "memory/flat.h"

void
flat_init(Flat *flat)
{
	initStringInfo(&flat->bytes);
	initStringInfo(&flat->pointers);
}

static uint32
append(Flat *flat, const void *bytes, Size size)
{
	uint32		offset = flat->bytes.len;

	appendBinaryStringInfo(&flat->bytes, bytes, size);
	return offset;
}

static void
align(Flat *flat)
{
	static const char zeros[MAXIMUM_ALIGNOF] = {0};

	append(flat, zeros, MAXALIGN(flat->bytes.len) - flat->bytes.len);
}

/* Room for a struct, aligned and zeroed. */
uint32
flat_reserve(Flat *flat, Size size)
{
	uint32		offset;

	align(flat);
	offset = flat->bytes.len;
	enlargeStringInfo(&flat->bytes, size);
	memset(flat->bytes.data + offset, 0, size);
	flat->bytes.len += size;
	return offset;
}

/* Has the pointer at an offset point at what is at another. */
void
flat_point(Flat *flat, uint32 pointer, uint32 target)
{
	*FLAT_AT(flat, uintptr_t, pointer) = target;
	appendBinaryStringInfo(&flat->pointers, (const char *) &pointer, sizeof(pointer));
}

/* Has it point at a copy of a string, or leaves it NULL. */
void
flat_string(Flat *flat, uint32 pointer, const char *string)
{
	if (string != NULL)
		flat_point(flat, pointer, append(flat, string, strlen(string) + 1));
}

/* The same with a datum that has a length word of four bytes. */
void
flat_datum(Flat *flat, uint32 pointer, const void *datum)
{
	align(flat);
	flat_point(flat, pointer, append(flat, datum, VARSIZE(datum)));
}

/* The same with an array of that size, which is yet to be filled; returns its offset. */
uint32
flat_array(Flat *flat, uint32 pointer, Size size)
{
	uint32		offset = flat_reserve(flat, size);

	flat_point(flat, pointer, offset);
	return offset;
}

uint32
flat_npointers(const Flat *flat)
{
	return flat->pointers.len / sizeof(uint32);
}

/* Makes offsets pointers, in bytes that stay where they are from now on. */
void *
flat_resolve(char *bytes, const uint32 *pointers, uint32 npointers)
{
	for (uint32 i = 0; i < npointers; i++)
	{
		uintptr_t  *pointer = (uintptr_t *) (bytes + pointers[i]);

		*(char **) pointer = bytes + *pointer;
	}
	return bytes;
}
