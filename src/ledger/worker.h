/*-------------------------------------------------------------------------
 * worker.h
 *		The background worker that makes the ledger's partitions.
 *-------------------------------------------------------------------------
 */
#ifndef WORKER_H
#define WORKER_H

#include "kavach.h"

extern bool worker_make_partitions(Oid ledger, TimestampTz ts);

#endif							/* WORKER_H */
