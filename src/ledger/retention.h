/*-------------------------------------------------------------------------
 * retention.h
 *		Who has months taken out of the ledger, and put back.
 *-------------------------------------------------------------------------
 */
#ifndef RETENTION_H
#define RETENTION_H

#include "kavach.h"

extern void retention_define_settings(void);
extern void retention_tend(Oid ledger);

#endif							/* RETENTION_H */
