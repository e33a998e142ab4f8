/*-------------------------------------------------------------------------
 * flat.h
 *		Structs that point at each other, as one stretch of bytes.
 *-------------------------------------------------------------------------
 */
#ifndef FLAT_H
#define FLAT_H

#include "kavach.h"

#include "lib/stringinfo.h"

/* While it is built, and as it is kept: pointers in it are offsets. */
typedef struct Flat
{
	StringInfoData bytes;
	StringInfoData pointers;	/* uint32: where they are */
} Flat;

/* Good until more is added. */
#define FLAT_AT(flat, type, offset) ((type *) ((flat)->bytes.data + (offset)))

/* The offset of a pointer that is a member of what is at an offset. */
#define FLAT_MEMBER(type, member, offset) ((offset) + (uint32) offsetof(type, member))

extern void flat_init(Flat *flat);
extern uint32 flat_reserve(Flat *flat, Size size);
extern void flat_point(Flat *flat, uint32 pointer, uint32 target);
extern void flat_string(Flat *flat, uint32 pointer, const char *string);
extern void flat_datum(Flat *flat, uint32 pointer, const void *datum);
extern uint32 flat_array(Flat *flat, uint32 pointer, Size size);
extern uint32 flat_npointers(const Flat *flat);
extern void *flat_resolve(char *bytes, const uint32 *pointers, uint32 npointers);

#endif							/* FLAT_H */
