/*-------------------------------------------------------------------------
 * written.h
 *		What this transaction has written into the ledger.
 *-------------------------------------------------------------------------
 */
#ifndef WRITTEN_H
#define WRITTEN_H

#include "kavach.h"

#include "ledger/row.h"

extern void written_define_settings(void);
extern void written_note(const LedgerRow *row);
extern bool written_any(void);
extern void written_end_subtransaction(bool commit, int level);
extern void written_end_transaction(bool commit);

#endif							/* WRITTEN_H */
