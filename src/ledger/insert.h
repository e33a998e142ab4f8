/*-------------------------------------------------------------------------
 * insert.h
 *		The way of a row straight into the partition of its month.
 *-------------------------------------------------------------------------
 */
#ifndef INSERT_H
#define INSERT_H

#include "kavach.h"

#include "ledger/row.h"

extern bool insert_is_into(Oid relid);
extern bool insert_row(Oid ledger, TimestampTz ts, const RowValues *row);

#endif							/* INSERT_H */
