/*-------------------------------------------------------------------------
 * straight.h
 *		Tables of kavach's own, opened for scans of an index.
 *-------------------------------------------------------------------------
 */
#ifndef STRAIGHT_H
#define STRAIGHT_H

#include "kavach.h"

#include "access/attnum.h"
#include "utils/rel.h"

#define MAX_STRAIGHT_COLUMNS	6

typedef struct StraightColumn
{
	const char *name;
	Oid			type;
} StraightColumn;

/* A table, and the columns that are read of it: a static variable of who reads it. */
typedef struct StraightTable
{
	const char *name;			/* with its schema, kavach */
	int			nkeys;			/* with so many columns the index begins */
	int			ncolumns;
	StraightColumn columns[MAX_STRAIGHT_COLUMNS];

	/* of straight.c */
	bool		registered;
	struct StraightTable *next;
	Oid			relid;			/* InvalidOid: to be looked up */
	Oid			known;			/* the table that the rest is about */
	AttrNumber	attnums[MAX_STRAIGHT_COLUMNS];
	Oid			index_id;		/* InvalidOid: only a statement will do */

	/* while it is open */
	Relation	table;
	Relation	index;
} StraightTable;

extern bool straight_open(StraightTable *straight);
extern void straight_close(StraightTable *straight);

#endif							/* STRAIGHT_H */
