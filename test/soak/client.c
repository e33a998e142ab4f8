/*-------------------------------------------------------------------------
 * client.c
 *		The clients of the soak test: what they ask and what they are answered.
 *
 *		client CONNINFO FOLDER SEED CLIENTS SECONDS MODE
 *
 * CLIENTS processes, a connection each, call kavach until the time is over;
 * one more disturbs them.  When a connection is lost they connect again, so a
 * server may be killed meanwhile.  What a client does depends on SEED and its
 * number alone, but for what the server answers.
 *
 * MODE "unit": calls of one token, each in a transaction of its own, and
 * nobody disturbs.  MODE "mixed": all that applications do, a third of it
 * undone, and a disturber who cancels, terminates, reloads, revokes.
 *
 * Client n writes FOLDER/n.log, for check.sql to judge: a line for each row
 * that it was told of, once it knows what became of it:
 *
 *		kept	its COMMIT was acknowledged
 *		undone	it was rolled back, or its COMMIT was never sent
 *		unknown	the connection was lost after COMMIT was sent
 *
 * and a line "error" for each SQL error.
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libpq-fe.h>

#define AGENTS		40			/* as in world.sql */
#define MAX_ITEMS	64
#define MAX_LEVELS	4
#define REMEMBERED	32

/*
 * The real time, then instants around the turns of year, day, leap day and
 * month, in order.
 */
static const char *const instants[] = {
	"",
	"2095-12-31 23:59:59.999999+00",
	"2096-01-01 00:00:00+00",
	"2096-02-28 23:30:00+00",
	"2096-02-29 00:00:00+00",
	"2096-02-29 23:59:59.5+00",
	"2096-03-01 00:00:00+00",
	"2096-03-01 12:34:56+00",
};

#define INSTANTS	((int) (sizeof(instants) / sizeof(instants[0])))

/* A ledger row that the server has told of. */
typedef struct Item
{
	char		id[40];
	char		agent[32];
	char		kind;			/* a: authorization, u: usage */
	bool		allowed;
	char		code[32];
	long		tokens;			/* granted, or charged */
	long		cost;			/* asked for */
	int			instant;
	double		sent;
	double		received;
} Item;

static uint64_t random_state;
static double deadline;
static const char *conninfo;
static bool unit;
static int	number;
static bool cut_off = true;		/* the server has ended the connection */
static bool hasty;				/* statement_timeout strikes at any point */
static FILE *log_file;
static PGconn *conn;
static long transaction = 0;

static Item items[MAX_ITEMS];	/* of the open transaction */
static int	nitems = 0;
static bool alone;				/* that transaction is one call, so its time is known */
static int	clock_at;			/* index of the instant that the clock shows */
static char asked[32];			/* the agent of the last call */
static Item remembered[REMEMBERED]; /* admitted and acknowledged, to be settled */
static int	nremembered = 0;

/* ---- chance and time ---- */

static uint64_t
draw(void)
{
	uint64_t	z = (random_state += UINT64_C(0x9E3779B97F4A7C15));

	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

static int
upto(int n)
{
	return (int) (draw() % (uint64_t) n);
}

static bool
percent(int n)
{
	return upto(100) < n;
}

static double
now(void)
{
	struct timeval time;

	gettimeofday(&time, NULL);
	return time.tv_sec + time.tv_usec / 1e6;
}

static bool
running(void)
{
	return now() < deadline;
}

/* ---- the connection ---- */

static void
connect_again(const char *name)
{
	char		text[512];

	snprintf(text, sizeof(text), "%s application_name='%s' connect_timeout=10", conninfo, name);
	while (running())
	{
		if (conn)
			PQfinish(conn);
		conn = PQconnectdb(text);
		cut_off = PQstatus(conn) != CONNECTION_OK;
		if (!cut_off)
			break;
		usleep(20000);
	}
}

static void
log_error(const PGresult *result)
{
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);

	if (PQstatus(conn) != CONNECTION_OK || (severity && strcmp(severity, "ERROR") != 0))
		cut_off = true;
	if (state)
		fprintf(log_file, "error\t%d\t%ld\t\\N\t%s\t\\N\t\\N\t%s\t\\N\t\\N\t\\N\t\\N\t\\N\n",
				number, transaction, message ? message : "", state);
}

/* Runs a statement with up to 6 parameters; NULL after an error, which is logged. */
static PGresult *
query(const char *sql, int nparams,...)
{
	const char *values[6];
	PGresult   *result;
	ExecStatusType status;
	va_list		args;

	va_start(args, nparams);
	for (int i = 0; i < nparams; i++)
		values[i] = va_arg(args, const char *);
	va_end(args);
	if (nparams > 0)
		result = PQexecParams(conn, sql, nparams, NULL, values, NULL, NULL, 0);
	else
		result = PQexec(conn, sql);
	status = PQresultStatus(result);
	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return result;
	log_error(result);
	PQclear(result);
	return NULL;
}

static bool
run(const char *sql)
{
	PGresult   *result = query(sql, 0);

	PQclear(result);
	return result != NULL;
}

/* Ready for the next transaction: also where a BEGIN or a ROLLBACK was cancelled. */
static bool
ready(const char *name)
{
	if (cut_off)
		connect_again(name);
	else if (PQtransactionStatus(conn) != PQTRANS_IDLE)
		run("ROLLBACK");
	return !cut_off && PQtransactionStatus(conn) == PQTRANS_IDLE;
}

/* ---- what became of a row ---- */

static void
log_items(const char *state, int from)
{
	for (int i = from; i < nitems; i++)
	{
		Item	   *item = &items[i];

		fprintf(log_file, "%s\t%d\t%ld\t%s\t%s\t%c\t%c\t%s\t%ld\t%ld\t%c\t%.6f\t%.6f\n",
				state, number, transaction, item->id, item->agent, item->kind,
				item->allowed ? 't' : 'f', item->code, item->tokens, item->cost,
				alone ? 't' : 'f', item->sent, item->received);
		if (state[0] == 'k' && item->kind == 'a' && item->allowed && item->tokens > 0)
			remembered[nremembered++ % REMEMBERED] = *item;
	}
	nitems = from;
}

/* Takes the row of an answer in; sent: when the call was made. */
static void
add_item(PGresult *result, int row, char kind, const char *agent, long cost, double sent)
{
	Item	   *item = &items[nitems++];

	snprintf(item->id, sizeof(item->id), "%s", PQgetvalue(result, row, 0));
	snprintf(item->code, sizeof(item->code), "%s", PQgetvalue(result, row, 1));
	snprintf(item->agent, sizeof(item->agent), "%s", agent);
	item->tokens = atol(PQgetvalue(result, row, 2));
	item->allowed = kind == 'u' || PQgetvalue(result, row, 3)[0] == 't';
	item->kind = kind;
	item->cost = cost;
	item->instant = clock_at;
	item->sent = sent;
	item->received = now();
}

/* ---- what applications do ---- */

static void
random_agent(char *agent, size_t size)
{
	snprintf(agent, size, "agt_%d", upto(AGENTS));
}

/* request: NULL, or a key whose calls are all the same. */
static bool
authorize(const char *agent, long cost, long min_tokens, const char *request)
{
	char		cost_text[24];
	char		min_text[24];
	double		sent = now();
	PGresult   *result;

	snprintf(asked, sizeof(asked), "%s", agent);
	snprintf(cost_text, sizeof(cost_text), "%ld", cost);
	snprintf(min_text, sizeof(min_text), "%ld", min_tokens);
	result = query("SELECT audit_id, code, coalesce(tokens_granted, 0), allowed"
				   "  FROM kavach_authorize($1, 'run', 'tool:x', tokens_cost => $2::bigint,"
				   "                        request_id => $3, min_tokens => $4::bigint)",
				   4, agent, cost_text, request, min_tokens > 0 ? min_text : NULL);
	if (result)
		add_item(result, 0, 'a', agent, cost, sent);
	PQclear(result);
	return result != NULL;
}

/* Several calls in one statement. */
static bool
authorize_many(void)
{
	int			count = 2 + upto(5);
	char		agents[6][32];
	char		list[256] = "{";
	double		sent = now();
	PGresult   *result;

	for (int i = 0; i < count; i++)
	{
		random_agent(agents[i], sizeof(agents[i]));
		strcat(list, agents[i]);
		strcat(list, i + 1 < count ? "," : "}");
	}
	result = query("SELECT a.audit_id, a.code, coalesce(a.tokens_granted, 0), a.allowed"
				   "  FROM unnest($1::text[]) WITH ORDINALITY AS u (agent, n),"
				   "       kavach_authorize(agent, 'run', 'tool:x', tokens_cost => 1) AS a"
				   " ORDER BY n", 1, list);
	for (int i = 0; result && i < count; i++)
		add_item(result, i, 'a', agents[i], 1, sent);
	PQclear(result);
	return result != NULL;
}

/* Whether the clock shows no more than a day before the call, as settlements ask for. */
static bool
can_be_settled(const Item *item)
{
	return item->instant <= clock_at || (item->instant == clock_at + 1 && clock_at != 0 && clock_at != 2);
}

/*
 * Settles an authorization of this transaction or one before.  What was spent
 * follows from its id, so that a second settlement says the same.
 */
static bool
settle(void)
{
	Item	   *item = NULL;
	char		tokens[24];
	long		spent;
	unsigned	hash = 0;
	double		sent = now();
	PGresult   *result;

	if (nitems > 0 && percent(30) && items[nitems - 1].kind == 'a' && items[nitems - 1].tokens > 0)
		item = &items[nitems - 1];
	else if (nremembered > 0)
		item = &remembered[upto(nremembered < REMEMBERED ? nremembered : REMEMBERED)];
	if (item == NULL || !can_be_settled(item))
		return true;
	snprintf(asked, sizeof(asked), "%s", item->agent);
	for (const char *c = item->id; *c; c++)
		hash = hash * 31 + (unsigned char) *c;
	spent = hash % 2 == 0 ? 0 : hash % (item->tokens + 1);
	snprintf(tokens, sizeof(tokens), "%ld", spent);
	result = query("SELECT usage_id, code, tokens_charged"
				   "  FROM kavach_record_usage($1, $2::bigint, $3::uuid)", 3, item->agent, tokens, item->id);
	if (result)
		add_item(result, 0, 'u', item->agent, spent, sent);
	PQclear(result);
	return result != NULL;
}

/* Calls in a block of PL/pgSQL that fails. */
static bool
call_in_failing_block(void)
{
	char		agent[32];
	PGresult   *result;

	random_agent(agent, sizeof(agent));
	result = query("SELECT soak.call_and_fail($1)", 1, agent);
	PQclear(result);
	return result != NULL;
}

static bool
act(void)
{
	char		agent[32];
	long		cost = 1 + upto(9);
	int			choice = upto(100);

	random_agent(agent, sizeof(agent));
	if (choice < 55)
		return authorize(agent, choice < 3 ? 0 : cost, 0, NULL);
	if (choice < 70)
		return authorize(agent, cost * 3, 1 + upto(cost), NULL);
	if (choice < 90)
		return settle();
	if (choice < 95)
		return call_in_failing_block();
	return authorize_many();
}

/* ---- transactions ---- */

static void
commit(void)
{
	PGresult   *result = query("COMMIT", 0);

	if (result && strcmp(PQcmdStatus(result), "COMMIT") == 0)
		log_items("kept", 0);
	else
		log_items(cut_off ? "unknown" : "undone", 0);
	PQclear(result);
}

/*
 * A call by itself has ended: its answer is its acknowledgement.  Where the
 * connection was lost instead, there may be a row that we do not know the id of.
 */
static void
end_of_call(bool answered)
{
	if (!answered && cut_off)
		fprintf(log_file, "unknown\t%d\t%ld\t\\N\t%s\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n",
				number, transaction, asked);
	log_items("kept", 0);
}

static bool
set_clock(bool local, int instant)
{
	char		sql[128];

	snprintf(sql, sizeof(sql), "SET %s kavach.clock = '%s'", local ? "LOCAL" : "", instants[instant]);
	if (!run(sql))
		return false;
	clock_at = instant;
	return true;
}

static void
single_call(void)
{
	char		agent[32];
	char		request[32];
	int			choice = upto(100);
	int			instant = upto(INSTANTS);

	if (unit || choice < 60)
	{
		random_agent(agent, sizeof(agent));
		if (!set_clock(false, instant))
			return;
		alone = true;
		end_of_call(authorize(agent, unit ? 1 : 1 + upto(9), 0, NULL));
		alone = false;
	}
	else if (choice < 80)
	{
		/* several clients use the same keys at about the same time */
		int			key = (int) transaction / 4 * 5 + upto(5);

		instant = 1 + key % (INSTANTS - 1);
		snprintf(agent, sizeof(agent), "agt_%d", key % AGENTS);
		snprintf(request, sizeof(request), "request %d", key);
		if (!set_clock(false, instant))
			return;
		end_of_call(authorize(agent, 1 + key % 7, 0, request));
	}
	else if (set_clock(false, instant))
	{
		end_of_call(settle());
	}
}

/* Runs "VERB s<level>". */
static bool
savepoint(const char *verb, int level)
{
	char		sql[64];

	snprintf(sql, sizeof(sql), "%s s%d", verb, level);
	return run(sql);
}

/*
 * Acts at a level of savepoints, and deeper; false once the transaction has
 * failed.  Savepoints that were rolled back to stay open, as they may.
 */
static bool
act_in_levels(int level)
{
	int			count = 1 + upto(3);

	for (int i = 0; i < count; i++)
	{
		int			mark = nitems;
		int			clock_before = clock_at;

		if (nitems > MAX_ITEMS - 16)
			return true;
		if (level >= MAX_LEVELS || !percent(40))
		{
			if (!act())
				return false;
			continue;
		}
		if (!savepoint("SAVEPOINT", level))
			return false;
		if (!act_in_levels(level + 1))
		{
			/* an application that catches errors goes on from its savepoint */
			if (PQtransactionStatus(conn) != PQTRANS_INERROR || !savepoint("ROLLBACK TO", level))
				return false;
			log_items("undone", mark);
			clock_at = clock_before;
		}
		else if (percent(40))
		{
			if (!savepoint("ROLLBACK TO", level))
				return false;
			log_items("undone", mark);
			clock_at = clock_before;
		}
		else if (!savepoint("RELEASE", level))
			return false;
		if (percent(15) && !set_clock(true, upto(INSTANTS)))
			return false;
	}
	return true;
}

/* Only refunds, held open for a while: what they free must not be had before they commit. */
static bool
settle_some(void)
{
	int			count = 1 + upto(4);

	for (int i = 0; i < count; i++)
		if (!settle())
			return false;
	usleep(upto(20000));
	return true;
}

static void
transaction_block(void)
{
	static const char *const begins[] = {
		"BEGIN", "BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ",
		"BEGIN ISOLATION LEVEL SERIALIZABLE",
	};

	if (!run(begins[upto(5)]))
		return;
	if (!set_clock(true, upto(INSTANTS)) || !(percent(25) ? settle_some() : act_in_levels(0)))
	{
		log_items("undone", 0);
		if (!cut_off)
			run("ROLLBACK");
		return;
	}
	if (percent(20))
		usleep(upto(15000));
	if (percent(30))
	{
		run("ROLLBACK");
		log_items("undone", 0);
	}
	else if (percent(2))
	{
		cut_off = true;			/* an application that dies */
		log_items("undone", 0);
	}
	else
		commit();
}

/* Opens FOLDER/name.log.  What servers say when they are killed is of no interest. */
static void
open_log(const char *folder, const char *name)
{
	char		path[512];

	snprintf(path, sizeof(path), "%s/%s.log", folder, name);
	log_file = fopen(path, "w");
	if (log_file == NULL || freopen("/dev/null", "w", stderr) == NULL)
		exit(1);
}

static void
be_client(const char *folder)
{
	char		name[32];

	snprintf(name, sizeof(name), "%d", number);
	open_log(folder, name);
	snprintf(name, sizeof(name), "client %d", number);
	hasty = !unit && number % 8 == 0;
	while (running())
	{
		bool		fresh = cut_off;

		if (!ready(name))
			continue;
		if (fresh && number % 4 == 1 && !unit)
			run("SET synchronous_commit = off");
		if (fresh && hasty)
			run("SET statement_timeout = 20");
		transaction++;
		if (unit || percent(40))
			single_call();
		else
			transaction_block();
	}
	fclose(log_file);
}

/* ---- the disturber ---- */

static void
disturb(void)
{
	int			victim = upto(1000);
	int			choice = upto(100);
	char		sql[512];

#define DO(...) snprintf(sql, sizeof(sql), __VA_ARGS__)
	if (choice < 40)
		DO("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'client %%'"
		   " ORDER BY hashtext(application_name || '%d') LIMIT 3", victim);
	else if (choice < 55)
		DO("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'client %%'"
		   " ORDER BY hashtext(application_name || '%d') LIMIT 1", victim);
	else if (choice < 70)
		DO("SELECT count(kavach_restore_agent(agent_id)) FROM kavach.agent WHERE status = 'revoked'");
	else if (choice < 80)
		DO("UPDATE kavach.agent SET user_id = 'x' || %d WHERE agent_id = 'agt_%d'", upto(10), upto(4));
	else if (choice < 87)
		DO("SELECT kavach_create_policy(user_id => 'x%d', limits => '{\"max_calls_total\": 1}',"
		   " action => 'warn')", upto(10));
	else if (choice < 92)
		DO("DELETE FROM kavach.budget_policy WHERE action = 'warn'");
	else if (choice < 95)
		DO("SELECT kavach_reload_counters()");
	else if (choice < 98)
		DO("BEGIN; UPDATE kavach.budget_limit SET amount = 1000000;"
		   " SELECT code FROM kavach_authorize('agt_%d', 'run', 'tool:x', 1); ROLLBACK", upto(AGENTS));
	else
		DO("ANALYZE kavach.audit_log");
#undef DO
	run(sql);
}

static void
be_disturber(const char *folder)
{
	open_log(folder, "disturber");
	while (running())
	{
		if (!ready("disturber"))
			continue;
		run("SET lock_timeout = 500");
		disturb();
		transaction++;
		usleep(10000 + upto(20000));
	}
	fclose(log_file);
}

int
main(int argc, char **argv)
{
	int			nclients;
	bool		failed = false;
	int			status;

	if (argc != 7)
	{
		fprintf(stderr, "usage: client CONNINFO FOLDER SEED CLIENTS SECONDS MODE\n");
		return 1;
	}
	conninfo = argv[1];
	nclients = atoi(argv[4]);
	deadline = now() + atof(argv[5]);
	unit = strcmp(argv[6], "unit") == 0;
	for (number = 0; number < nclients + !unit; number++)
	{
		if (fork() != 0)
			continue;
		random_state = strtoull(argv[3], NULL, 10) * 1000 + number;
		if (number < nclients)
			be_client(argv[2]);
		else
			be_disturber(argv[2]);
		if (conn)
			PQfinish(conn);
		return 0;
	}
	while (wait(&status) > 0)
		failed |= status != 0;
	return failed;
}
