/*-------------------------------------------------------------------------
 * find.h
 *		Rows of kavach's own tables, straight by their indexes.
 *-------------------------------------------------------------------------
 */
#ifndef FIND_H
#define FIND_H

#include "kavach.h"

#include "nodes/pg_list.h"

#include "server/query.h"
#include "server/straight.h"

#define MAX_FIND_KEYS		2
/* How rows of a table are found, and what is wanted of them: a static variable of who wants it. */
typedef struct Finder
{
	StraightTable table;		/* its keys are texts */
	Statement	statements[2];	/* of find.c; the second where the last key is
								 * NULL */
} Finder;

/* By what one search goes: only the last may be NULL, for rows in which it is. */
typedef struct FindKeys
{
	const char *values[MAX_FIND_KEYS];
} FindKeys;

typedef struct FoundRow
{
	int			search;			/* which of them has found it */
	Datum		values[MAX_STRAIGHT_COLUMNS];	/* copies */
	bool		isnull[MAX_STRAIGHT_COLUMNS];
} FoundRow;

extern void find_begin(void);
extern void find_end(void);
extern List *find_rows(Finder *finder, const FindKeys *searches, int nsearches);
extern char *found_text(const FoundRow *row, int column);

#endif							/* FIND_H */
