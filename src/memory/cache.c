/*-------------------------------------------------------------------------
 * cache.c
 *		What has been looked up, once for all sessions.
 *
 * Purpose: what a session has read of an agent, a user, a tenant or of what
 * binds everybody serves all of them.  What the values hold is catalog.c's
 * business, and when they are good is change.c's: here a value comes with a
 * stamp, and goes out with it.
 *
 * Layout: kavach.cache_size is divided among partitions, by hash of the
 * subject.  Each has buckets and chunks of 128 bytes of its own; an entry is a
 * chain of chunks.  So room is never fragmented, whatever the sizes of the
 * values, and one lock guards all that a partition has.  (The server's own
 * DSA keeps 64 kB for each size that occurs: a small cache would hold little
 * else, and one whose values change in size would have to give up most of them
 * before another size finds room.)
 *
 * Locks: a partition's lock guards its buckets, chunks and counts: shared to
 * copy a value out, exclusive to put one in.  One at a time.  Under it: no
 * SQL, no allocation, no error, no wait for anything; and as an LWLock holds
 * off interrupts, who is cancelled or terminated leaves no half entry.
 *
 * Eviction: a hand goes round the chunks of the partition.  An entry that was
 * used since the hand came by last is spared once.
 *
 * A value begins with a pointer to the id that it is of (NULL for all); who
 * reads one looks whether it is his, as subjects may share a hash.  A value
 * that would take more than half of a partition is not kept.
 *-------------------------------------------------------------------------
 */
#include "memory/cache.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "memory/counter.h"
#include "server/argument.h"

#define MAX_PARTITIONS	64
#define MIN_CHUNKS		512		/* of a partition, where there are several */
#define CHUNKS_A_BUCKET	2
#define NO_CHUNK		0		/* the first one of a partition is not used */

typedef struct Entry
{
	uint64		hash;
	uint64		stamp;
	Oid			database;
	Oid			ledger;
	uint32		next_in_bucket;
	uint32		size;			/* of the value, aligned */
	uint32		npointers;		/* which follow it */
	uint8		scope;
	bool		touched;		/* used since the hand came by last */
} Entry;

#define CHUNK_SIZE		128
#define CHUNK_BYTES		(CHUNK_SIZE - 2 * sizeof(uint32))
#define FIRST_BYTES		(CHUNK_BYTES - sizeof(Entry))	/* in an entry's first */

typedef struct Chunk
{
	uint32		next;			/* of the entry, or of those that are free */
	uint32		begins_entry;
	union
	{
		Entry		entry;
		char		bytes[CHUNK_BYTES];
	}			u;
} Chunk;

StaticAssertDecl(sizeof(Chunk) == CHUNK_SIZE, "a chunk has no padding");

typedef struct Partition
{
	LWLock	   *lock;			/* guards all but hits and misses */
	uint32	   *buckets;
	Chunk	   *chunks;
	uint32		nbuckets;		/* a power of two */
	uint32		nchunks;
	uint32		fresh;			/* from here on none was used yet */
	uint32		free;			/* the first of those that were given back */
	uint32		nfree;			/* of both kinds */
	uint32		hand;
	uint32		nentries;
	uint64		evictions;
	pg_atomic_uint64 hits;
	pg_atomic_uint64 misses;
} Partition;

typedef union PaddedPartition
{
	Partition	partition;
	char		padding[2 * PG_CACHE_LINE_SIZE];
} PaddedPartition;

static int	cache_size = 64 * 1024; /* kB */

static PaddedPartition *partitions = NULL;
static uint32 npartitions = 0;	/* a power of two */

ENTRY_POINT(kavach_cache_stats, 0, 5);

void
cache_define_settings(void)
{
	DefineCustomIntVariable("kavach.cache_size",
							"Sets the memory for what calls look up: agents, permissions and limits.",
							"For all sessions of the server. When it is full, what was not used for longest goes; too small is slow, never wrong.",
							&cache_size,
							64 * 1024, 16, MAX_KILOBYTES,
							PGC_POSTMASTER,
							GUC_UNIT_KB,
							NULL, NULL, NULL);
}

/* ---- shared memory ---- */

static uint32
all_chunks(void)
{
	return (uint64) cache_size * 1024 / CHUNK_SIZE;
}

/* Fewer where the cache is small, or it could hold small values only. */
static uint32
num_partitions(void)
{
	uint32		count = MAX_PARTITIONS;

	while (count > 1 && all_chunks() / count < MIN_CHUNKS)
		count /= 2;
	return count;
}

static uint32
num_chunks(void)
{
	return all_chunks() / num_partitions();
}

static uint32
num_buckets(void)
{
	return pg_nextpower2_32(num_chunks() / CHUNKS_A_BUCKET);
}

static Size
partition_size(void)
{
	return add_size(mul_size(num_chunks(), sizeof(Chunk)),
					CACHELINEALIGN(mul_size(num_buckets(), sizeof(uint32))));
}

Size
cache_shmem_size(void)
{
	return mul_size(num_partitions(), add_size(sizeof(PaddedPartition), partition_size()));
}

void
cache_request_locks(void)
{
	RequestNamedLWLockTranche("kavach_cache", num_partitions());
}

static void
init_partition(Partition *partition, LWLock *lock, char *memory)
{
	memset(partition, 0, sizeof(Partition));
	partition->lock = lock;
	partition->chunks = (Chunk *) memory;
	partition->nchunks = num_chunks();
	partition->buckets = (uint32 *) (memory + partition->nchunks * sizeof(Chunk));
	partition->nbuckets = num_buckets();
	memset(partition->buckets, 0, partition->nbuckets * sizeof(uint32));
	partition->fresh = NO_CHUNK + 1;
	partition->nfree = partition->nchunks - partition->fresh;
	partition->free = NO_CHUNK;
	partition->hand = NO_CHUNK;
	pg_atomic_init_u64(&partition->hits, 0);
	pg_atomic_init_u64(&partition->misses, 0);
}

/* Called with AddinShmemInitLock held. */
void
cache_shmem_startup(void)
{
	LWLockPadded *locks = GetNamedLWLockTranche("kavach_cache");
	bool		found;
	char	   *memory;

	memory = ShmemInitStruct("kavach cache", cache_shmem_size(), &found);	/* at a cache line */
	partitions = (PaddedPartition *) memory;
	npartitions = num_partitions();
	if (found)
		return;
	memory += npartitions * sizeof(PaddedPartition);
	for (uint32 i = 0; i < npartitions; i++)
		init_partition(&partitions[i].partition, &locks[i].lock, memory + i * partition_size());
}

/* Whether there is a cache: where kavach is preloaded. */
bool
cache_is_there(void)
{
	return partitions != NULL;
}

/* ---- within a partition, which is locked ---- */

/* By the upper bits; the lower ones select the bucket. */
static Partition *
partition_of(uint64 hash)
{
	return &partitions[(hash >> 32) & (npartitions - 1)].partition;
}

static uint32 *
bucket_of(Partition *partition, uint64 hash)
{
	return &partition->buckets[hash & (partition->nbuckets - 1)];
}

static Entry *
entry_at(Partition *partition, uint32 chunk)
{
	return &partition->chunks[chunk].u.entry;
}

static uint32
find_entry(Partition *partition, const CacheKey *key)
{
	uint32		chunk = *bucket_of(partition, key->hash);

	while (chunk != NO_CHUNK)
	{
		Entry	   *entry = entry_at(partition, chunk);

		if (entry->hash == key->hash && entry->scope == key->scope &&
			entry->database == MyDatabaseId && entry->ledger == key->ledger)
			break;
		chunk = entry->next_in_bucket;
	}
	return chunk;
}

/* What a value takes with the list of its pointers. */
static Size
kept_size(uint32 size, uint32 npointers)
{
	return size + npointers * sizeof(uint32);
}

static uint32
chunks_for(Size size)
{
	return size <= FIRST_BYTES ? 1 : 1 + (size - FIRST_BYTES + CHUNK_BYTES - 1) / CHUNK_BYTES;
}

static void
remove_entry(Partition *partition, uint32 chunk)
{
	Entry	   *entry = entry_at(partition, chunk);
	uint32	   *link = bucket_of(partition, entry->hash);
	uint32		last = chunk;
	uint32		count = 1;

	while (*link != chunk)
		link = &entry_at(partition, *link)->next_in_bucket;
	*link = entry->next_in_bucket;

	for (; partition->chunks[last].next != NO_CHUNK; last = partition->chunks[last].next)
		count++;
	partition->chunks[chunk].begins_entry = false;
	partition->chunks[last].next = partition->free;
	partition->free = chunk;
	partition->nfree += count;
	partition->nentries--;
}

/* Makes room for so many chunks, which are no more than half of all. */
static void
make_room(Partition *partition, uint32 nchunks)
{
	while (partition->nfree < nchunks)
	{
		uint32		chunk;

		if (++partition->hand >= partition->fresh)
			partition->hand = NO_CHUNK + 1;
		chunk = partition->hand;
		if (!partition->chunks[chunk].begins_entry)
			continue;
		if (entry_at(partition, chunk)->touched)
			entry_at(partition, chunk)->touched = false;
		else
		{
			remove_entry(partition, chunk);
			partition->evictions++;
		}
	}
}

static uint32
take_chunk(Partition *partition)
{
	uint32		chunk = partition->free;

	if (chunk != NO_CHUNK)
		partition->free = partition->chunks[chunk].next;
	else
		chunk = partition->fresh++;
	partition->nfree--;
	partition->chunks[chunk].next = NO_CHUNK;
	partition->chunks[chunk].begins_entry = false;
	return chunk;
}

/* Writes on to an entry: *to is where in which chunk. */
typedef struct Position
{
	uint32		chunk;
	uint32		offset;			/* in its bytes */
} Position;

static void
write_bytes(Partition *partition, Position *to, const char *bytes, Size size)
{
	while (size > 0)
	{
		Size		part;

		if (to->offset == CHUNK_BYTES)
		{
			uint32		next = take_chunk(partition);

			partition->chunks[to->chunk].next = next;
			to->chunk = next;
			to->offset = 0;
		}
		part = Min(size, CHUNK_BYTES - to->offset);
		memcpy(partition->chunks[to->chunk].u.bytes + to->offset, bytes, part);
		to->offset += part;
		bytes += part;
		size -= part;
	}
}

static void
read_bytes(const Partition *partition, uint32 chunk, char *to, Size size)
{
	const char *from = partition->chunks[chunk].u.bytes + sizeof(Entry);
	Size		part = Min(size, FIRST_BYTES);

	for (;;)
	{
		memcpy(to, from, part);
		to += part;
		size -= part;
		if (size == 0)
			return;
		chunk = partition->chunks[chunk].next;
		from = partition->chunks[chunk].u.bytes;
		part = Min(size, CHUNK_BYTES);
	}
}

/* ---- reading and writing ---- */

#define ROOM_SIZE	2048

static CacheRoom
make_cache_room(Size size)
{
	CacheRoom	room = {palloc(size), size};

	return room;
}

/* Room for what a call mostly copies. */
CacheRoom
cache_room(void)
{
	return make_cache_room(ROOM_SIZE);
}

/* Copies the value out, to the next place in the room, as it is kept; false where there is none, or no room. */
static bool
copy_out(const CacheKey *key, const CacheRoom *room, Entry *copy)
{
	Partition  *partition = partition_of(key->hash);
	uint32		chunk;
	bool		copied = false;

	copy->size = 0;
	copy->npointers = 0;
	LWLockAcquire(partition->lock, LW_SHARED);
	chunk = find_entry(partition, key);
	if (chunk != NO_CHUNK)
	{
		Entry	   *entry = entry_at(partition, chunk);
		Size		size = kept_size(entry->size, entry->npointers);

		*copy = *entry;
		copied = size <= room->left;
		if (copied)
			read_bytes(partition, chunk, room->next, size);
		if (!entry->touched)
			entry->touched = true;
	}
	LWLockRelease(partition->lock);
	return copied;
}

/*
 * The value that is kept of a subject, and the stamp that it came with; NULL
 * where there is none.  It lies in the room, which is made larger in the
 * current memory context where it has to be.
 */
void *
cache_read(const CacheKey *key, CacheRoom *room, uint64 *stamp)
{
	Entry		entry;
	char	   *value;
	const char *id;

	while (!copy_out(key, room, &entry))
	{
		if (entry.size == 0)
			return NULL;
		*room = make_cache_room(Max(kept_size(entry.size, entry.npointers), ROOM_SIZE));
	}
	value = room->next;
	room->next += MAXALIGN(kept_size(entry.size, entry.npointers));
	room->left -= Min(room->left, MAXALIGN(kept_size(entry.size, entry.npointers)));

	flat_resolve(value, (uint32 *) (value + entry.size), entry.npointers);
	id = *(const char **) value;
	*stamp = entry.stamp;
	return same_text(id, key->id) ? value : NULL;
}

/* Keeps a value, in the place of the one that is there, unless it is too large. */
void
cache_write(const CacheKey *key, uint64 stamp, const Flat *value)
{
	Partition  *partition = partition_of(key->hash);
	char		zeros[MAXIMUM_ALIGNOF] = {0};
	uint32		size = MAXALIGN(value->bytes.len);
	uint32		nchunks = chunks_for(kept_size(size, flat_npointers(value)));
	uint32		chunk;
	Entry	   *entry;
	Position	to;

	if (nchunks > partition->nchunks / 2)
		return;
	LWLockAcquire(partition->lock, LW_EXCLUSIVE);
	chunk = find_entry(partition, key);
	if (chunk != NO_CHUNK)
		remove_entry(partition, chunk);
	make_room(partition, nchunks);

	chunk = take_chunk(partition);
	partition->chunks[chunk].begins_entry = true;
	entry = entry_at(partition, chunk);
	entry->hash = key->hash;
	entry->stamp = stamp;
	entry->database = MyDatabaseId;
	entry->ledger = key->ledger;
	entry->size = size;
	entry->npointers = flat_npointers(value);
	entry->scope = key->scope;
	entry->touched = false;
	entry->next_in_bucket = *bucket_of(partition, key->hash);
	*bucket_of(partition, key->hash) = chunk;
	partition->nentries++;

	to.chunk = chunk;
	to.offset = sizeof(Entry);
	write_bytes(partition, &to, value->bytes.data, value->bytes.len);
	write_bytes(partition, &to, zeros, size - value->bytes.len);
	write_bytes(partition, &to, value->pointers.data, value->pointers.len);
	LWLockRelease(partition->lock);
}

/* ---- what operators see ---- */

/* Counts a call that found all that it looked up here, or did not. */
void
cache_count(uint64 hash, bool hit)
{
	Partition  *partition = partition_of(hash);

	pg_atomic_fetch_add_u64(hit ? &partition->hits : &partition->misses, 1);
}

/* SQL: kavach.cache_stats */
static Datum
kavach_cache_stats_checked(PG_FUNCTION_ARGS)
{
	int64		hits = 0,
				misses = 0,
				evictions = 0,
				entries = 0,
				chunks = 0;
	Datum		values[5];
	bool		nulls[5] = {false};

	counter_require();
	for (uint32 i = 0; i < npartitions; i++)
	{
		Partition  *partition = &partitions[i].partition;

		hits += pg_atomic_read_u64(&partition->hits);
		misses += pg_atomic_read_u64(&partition->misses);
		LWLockAcquire(partition->lock, LW_SHARED);
		evictions += partition->evictions;
		entries += partition->nentries;
		chunks += partition->nchunks - (NO_CHUNK + 1) - partition->nfree;
		LWLockRelease(partition->lock);
	}
	values[0] = Int64GetDatum(hits);
	values[1] = Int64GetDatum(misses);
	values[2] = Int64GetDatum(evictions);
	values[3] = Int64GetDatum(entries);
	values[4] = Int64GetDatum(chunks * CHUNK_SIZE);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}
