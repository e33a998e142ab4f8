/*-------------------------------------------------------------------------
 * find.h
 *		Rows of kavach's own tables, straight by their indexes.
 *-------------------------------------------------------------------------
 */
#ifndef FIND_H
#define FIND_H

#include "kavach.h"

#include "access/attnum.h"
#include "nodes/pg_list.h"

#include "server/query.h"

#define MAX_FIND_KEYS		2
#define MAX_FIND_COLUMNS	6

typedef struct FindColumn
{
	const char *name;
	Oid			type;
} FindColumn;

/* How rows of a table are found, and what is wanted of them: a static variable of who wants it. */
typedef struct Finder
{
	const char *table;			/* with its schema, kavach */
	int			nkeys;			/* the first columns, each a text */
	int			ncolumns;
	FindColumn	columns[MAX_FIND_COLUMNS];

	/* of find.c */
	bool		registered;
	struct Finder *next;
	Oid			relid;			/* of the table; InvalidOid: to be looked up */
	Oid			known;			/* what the rest is about, while it holds */
	AttrNumber	attnums[MAX_FIND_COLUMNS];
	Oid			index;			/* InvalidOid: only a statement will do */
	Statement	statements[2];	/* the second where the last key is NULL */
} Finder;

/* By what one search goes: only the last may be NULL, for rows in which it is. */
typedef struct FindKeys
{
	const char *values[MAX_FIND_KEYS];
} FindKeys;

typedef struct FoundRow
{
	int			search;			/* which of them has found it */
	Datum		values[MAX_FIND_COLUMNS];	/* copies */
	bool		isnull[MAX_FIND_COLUMNS];
} FoundRow;

extern void find_begin(void);
extern void find_end(void);
extern List *find_rows(Finder *finder, const FindKeys *searches, int nsearches);
extern char *found_text(const FoundRow *row, int column);

#endif							/* FIND_H */
