/*-------------------------------------------------------------------------
 * announce.h
 *		Makes the ledger's new partitions known to all sessions.
 *-------------------------------------------------------------------------
 */
#ifndef ANNOUNCE_H
#define ANNOUNCE_H

#include "kavach.h"

extern Size announce_shmem_size(void);
extern void announce_shmem_startup(void);
extern void announce_refresh(Oid ledger);
extern void announce_attached(void);
extern bool announce_has_attached(void);
extern void announce_again_later(void);
extern void announce_with_commit(Oid ledger);
extern void announce_ledger(Oid ledger);
extern void announce_end_transaction(bool commit);

#endif							/* ANNOUNCE_H */
