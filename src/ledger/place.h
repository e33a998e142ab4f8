/*-------------------------------------------------------------------------
 * place.h
 *		What is known of a partition: where its columns are, and its indexes.
 *-------------------------------------------------------------------------
 */
#ifndef PLACE_H
#define PLACE_H

#include "kavach.h"

#include "ledger/row.h"

#define MAX_FORM_COLUMNS	3

/* The forms that indexes have, by which rows are found. */
typedef enum IndexForm
{
	FORM_ID,
	FORM_SETTLES,
	FORM_REQUEST,
	FORM_OLD_REQUEST,			/* as kavach 0.1.0 made it */
	FORM_BATCH,
	FORM_AGENT
} IndexForm;

#define NUM_INDEX_FORMS	(FORM_AGENT + 1)

typedef struct IndexFormInfo
{
	bool		is_unique;		/* in just these columns; else it begins with
								 * them */
	bool		of_admitted;	/* it need have no rows but those that are */
	int			ncolumns;
	LedgerColumnNumber columns[MAX_FORM_COLUMNS];
} IndexFormInfo;

typedef struct Place
{
	Oid			relid;			/* the hash key */
	bool		valid;			/* not invalidated since it was looked at */
	bool		bare;			/* a table without any index */
	AttrNumber	attnums[NUM_LEDGER_COLUMNS];	/* of ledger_columns[] */
	Oid			indexes[NUM_INDEX_FORMS];	/* InvalidOid where there is none */
} Place;

extern const IndexFormInfo index_forms[NUM_INDEX_FORMS];
extern Place *place_of(Relation partition);
extern uint64 place_invalidations(void);

#endif							/* PLACE_H */
