/*-------------------------------------------------------------------------
 * ledger.h
 *		How rows are written and found.
 *-------------------------------------------------------------------------
 */
#ifndef LEDGER_H
#define LEDGER_H

#include "kavach.h"

#include "ledger/row.h"

extern void ledger_define_settings(void);
extern int	ledger_request_retention(void);
extern void ledger_begin(void);
extern pg_uuid_t ledger_first_id(TimestampTz ts);
extern void ledger_append(LedgerRow *row);
extern TimestampTz ledger_charged_at(const LedgerRow *row);
extern LedgerRow *ledger_find(const pg_uuid_t *id);
extern void ledger_find_requests(const LedgerKind *kinds, int count, const char *agent_id, const char *request_id,
								 TimestampTz ts, LedgerRow **rows);
extern LedgerRow *ledger_find_request(LedgerKind kind, const char *agent_id, const char *request_id,
									  TimestampTz ts);
extern LedgerRow *ledger_find_settlement(const pg_uuid_t *id);
extern void ledger_lock_request(const char *agent_id, const char *request_id, TimestampTz ts);
extern void ledger_lock_authorization(const pg_uuid_t *id, TimestampTz ts);

#endif							/* LEDGER_H */
