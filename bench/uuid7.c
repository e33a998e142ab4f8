/*
 * uuid7.c
 *		bench.uuid7(timestamptz): the id for the INSERT that kavach is compared with.
 *
 * The same kind of id, made the same way and at the same cost as src/ledger/ledger.c
 * makes it.  gen_random_uuid() would scatter the INSERT's primary key over its
 * whole index, and a UUIDv7 put together in SQL or PL/pgSQL costs as much as
 * the INSERT itself: both would flatter kavach.
 */
#include "postgres.h"

#include "fmgr.h"
#include "port/pg_bswap.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_uuid7);

Datum
bench_uuid7(PG_FUNCTION_ARGS)
{
	uint64		usecs = PG_GETARG_TIMESTAMPTZ(0) +
		(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	uint64		time = pg_hton64((usecs / 1000) << 16);
	uint32		fraction = (uint32) (usecs % 1000) * 4096 / 1000;
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	if (!pg_strong_random(id->data + 8, 8))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	memcpy(id->data, &time, 6);
	id->data[6] = 0x70 | (fraction >> 8);
	id->data[7] = fraction & 0xff;
	id->data[8] = 0x80 | (id->data[8] & 0x3f);
	PG_RETURN_UUID_P(id);
}
