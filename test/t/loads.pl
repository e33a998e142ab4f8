# loads.pl: a counter that is read from the ledger has every row once, wherever that is: in closed batches, in those that
# are not closed yet, or being closed just now; after evictions, restarts, and rows that no call has written.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('loads');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nkavach.max_counters = 16\nkavach.batch_interval = '1h'\nautovacuum = off");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_months('2026-01-01', '2026-04-01');
	SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
	       kavach_create_agent('agt_b', 'bob', permissions => '[{"resource": "*", "actions": ["*"]}]');
	SELECT count(kavach_create_agent('agt_' || n, 'user_' || n, 'tenant_' || n, permissions => '[{"resource": "*", "actions": ["*"]}]')) FROM generate_series(1, 300) n;
	SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 1000}');
	-- usage by the rows alone
	CREATE VIEW raw AS
	WITH row AS (
	  SELECT l.*, least(l.ts, (SELECT a.ts FROM kavach.audit_log a WHERE a.id = l.settles AND l.tokens_cost < 0)) AS counts_at FROM kavach.audit_log l WHERE l.result = 'allowed')
	SELECT s.scope, s.subject, w.period, w.start, sum(coalesce(tokens_cost, 0)) AS tokens, count(*) FILTER (WHERE kind = 'authorize') AS calls
	  FROM row
	 CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('user', user_id), ('tenant', tenant_id), ('all', NULL)) AS s (scope, subject)
	 CROSS JOIN LATERAL (VALUES ('hour', date_trunc('hour', counts_at, 'UTC')), ('day', date_trunc('day', counts_at, 'UTC')),
	                            ('month', date_trunc('month', counts_at, 'UTC')), ('total', '-infinity')) AS w (period, start)
	 WHERE s.scope = 'all' OR s.subject IS NOT NULL
	 GROUP BY 1, 2, 3, 4;
	-- where that is not how it stands at the clock's time, or what is in memory of other times
	CREATE VIEW wrong AS
	SELECT s.*, w.period, u.*, r.tokens AS raw_tokens, r.calls AS raw_calls
	  FROM (SELECT DISTINCT scope, subject FROM raw) s
	 CROSS JOIN kavach.windows(kavach.clock_now()) w
	 CROSS JOIN LATERAL kavach.current_usage(s.scope, s.subject, w.period, true) u
	  LEFT JOIN raw r ON (r.scope, r.period, r.start) = (s.scope, w.period, w.period_start) AND r.subject IS NOT DISTINCT FROM s.subject
	 WHERE (u.tokens, u.calls) IS DISTINCT FROM (coalesce(r.tokens, 0), coalesce(r.calls, 0))
	 UNION ALL
	SELECT c.scope, c.subject, c.period, c.period_start, c.tokens_used, c.calls_used, r.tokens, r.calls
	  FROM kavach.counters c
	  LEFT JOIN raw r ON (r.scope, r.period, r.start) = (c.scope, c.period, c.period_start) AND r.subject IS NOT DISTINCT FROM c.subject
	 WHERE (c.tokens_used, c.calls_used) IS DISTINCT FROM (coalesce(r.tokens, 0), coalesce(r.calls, 0))});

my $two = Session->new($node);
my $evict = q{DO $$ BEGIN
	FOR n IN 1 .. 300 LOOP
	  BEGIN
	    PERFORM kavach_authorize('agt_' || n, 'run', 'x', 1);
	    RAISE division_by_zero;
	  EXCEPTION WHEN division_by_zero THEN NULL;
	  END;
	END LOOP; END $$};
my $close = 'SELECT kavach.close_batches()';
sub call { my ($agent, $cost) = @_; return "SELECT code, tokens_remaining FROM kavach_authorize('agt_$agent', 'run', 'x', tokens_cost => $cost)" }

# What agt_a has left, with its counters put out of memory first; and that all is as the rows say.
sub left_is
{
	my ($left, $name) = @_;
	$node->safe_psql('postgres', $evict);
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT subject, ' ') FROM kavach.counters WHERE subject IN ('agt_a', 'ann', 'acme')}), '', "$name: out of memory");
	is($node->safe_psql('postgres', "SELECT string_agg(w::text, ' ') FROM wrong w"), '', 'all is as the rows say');
	is($node->safe_psql('postgres', call('a', 0)), "allowed|$left", 'and what is left as well');
	return;
}

# ---- where rows are ----

is($node->safe_psql('postgres', call('a', 10)), 'allowed|990', 'a call, before any batch is closed');
left_is(990, 'read from the tail');
is($node->safe_psql('postgres', $close) > 0, 1, 'closed');
left_is(990, 'read from what is closed');
$node->safe_psql('postgres', call('a', 5));
left_is(985, 'read from both');
$node->safe_psql('postgres', $close);
$node->safe_psql('postgres', "$evict; $close; $evict") for 1 .. 3;
left_is(985, 'after more batches');

# One session has rows in an open batch, and those after it are closed.
$two->query('BEGIN; ' . call('b', 7));
$node->safe_psql('postgres', call('a', 20) . "; $close; " . call('a', 30) . "; $close");
is($node->safe_psql('postgres', 'SELECT cardinality(open) FROM kavach.tail'), '1', 'a batch is held open');
left_is(935, 'beside an open batch');
$two->query('COMMIT');
left_is(935, 'and when it is committed');
$node->safe_psql('postgres', $close);
left_is(935, 'and when it is closed');

# A load while batches are being closed has them as they were; one by who closes them, as they will be.
$node->safe_psql('postgres', call('a', 15));
$two->query("BEGIN; $close");
left_is(920, 'while they are being closed');
is($two->query("$evict; " . call('a', 0)), "allowed|920", 'in the transaction that closes them');
$two->query('ROLLBACK');
left_is(920, 'when that is rolled back');
$two->query("BEGIN; " . call('a', 3) . "; $close; " . call('a', 4) . "; $evict; COMMIT");
left_is(913, 'closed by a transaction that has rows in them');

# ---- earlier windows ----

my $earlier = "SET kavach.clock = '2026-02-10 11:30:00+00'";
$node->safe_psql('postgres', "$earlier; SELECT kavach_authorize('agt_a', 'run', 'x', 50, request_id => 'r'); $close");
left_is(863, 'rows of an earlier month');
for my $closing ($close, 'SELECT 0')
{
	$node->safe_psql('postgres', "SELECT kavach_authorize('agt_a', 'run', 'x', 1); $earlier; $evict; SELECT kavach_authorize('agt_a', 'run', 'x', 1, request_id => 's$closing'); $closing");
	$node->safe_psql('postgres', "$evict; SELECT kavach_record_usage('agt_a', 0, id) FROM kavach.audit_log WHERE request_id = 's$closing'");
	$node->safe_psql('postgres', $closing);
	is($node->safe_psql('postgres', "$earlier; SELECT string_agg(w::text, ' ') FROM wrong w"), '', 'what is given back to a month that is not in memory');
	is($node->safe_psql('postgres', "$earlier; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 0); SELECT string_agg(w::text, ' ') FROM wrong w"), "allowed\n", 'and when that is loaded');
}
left_is(861, 'of now');
$node->safe_psql('postgres', "$earlier; SELECT kavach_authorize('agt_a', 'run', 'x', 40, request_id => 'own'); $close; $evict");
is($node->safe_psql('postgres', "BEGIN; SELECT tokens_charged FROM kavach.audit_log l, kavach_record_usage('agt_a', 0, l.id) WHERE l.request_id = 'own'; $earlier; "
		  . "SELECT u.tokens - r.tokens FROM kavach.current_usage('agent', 'agt_a', 'month', false) u JOIN raw r ON (r.scope, r.subject, r.period, r.start) = ('agent', 'agt_a', 'month', u.period_start); ROLLBACK"),
	"-40\n0", 'what the transaction itself gives back to a month that is not in memory');
$node->safe_psql('postgres', "SELECT kavach_record_usage('agt_a', 0, id) FROM kavach.audit_log WHERE request_id = 'own'");
left_is(861, 'settled');

is($node->safe_psql('postgres', "$close; SELECT count(*) FROM kavach.usage_scope WHERE (scope, period) = ('agent', 'hour')") =~ s/.*\n//r, '0', 'hours of agents that are old are not in the rollups');
left_is(861, 'and not missed');

# ---- rows that no call has written ----

my $by_hand = q{INSERT INTO kavach.audit_log (id, ts, kind, agent_id, user_id, tenant_id, result, code, tokens_cost)
	SELECT ('019cd7%s-0000-7000-8000-000000000000')::uuid, '2026-03-10 12:00:00+00', 'authorize', 'agt_a', 'ann', 'acme', 'allowed', 'allowed', 100};
$node->safe_psql('postgres', "$close; $evict");
$node->safe_psql('postgres', sprintf $by_hand, 'c0');
is($node->safe_psql('postgres', call('a', 0)), 'allowed|761', 'rows put in by hand, of who is not in memory');
$node->safe_psql('postgres', sprintf $by_hand, 'c1');
is($node->safe_psql('postgres', call('a', 0)), 'allowed|761', 'of which a counter that is in memory');
is($node->safe_psql('postgres', 'SELECT kavach_reload_counters() > 0; ' . call('a', 0)), "t\nallowed|661", 'knows when it is loaded anew');
left_is(661, 'and then');

# ---- what a server has from before it was started ----

for my $how (qw(immediate fast))
{
	$node->safe_psql('postgres', call('a', 1));
	$two->quit;
	$node->stop($how);
	$node->start;
	$two = Session->new($node);
	is($node->safe_psql('postgres', call('b', 0) =~ s/, tokens_remaining//r), 'allowed', 'another call opens a batch');
	is($node->safe_psql('postgres', "SELECT string_agg(w::text, ' ') FROM wrong w"), '', "after a restart ($how)");
	is($node->safe_psql('postgres', call('a', 0)), 'allowed|' . ($how eq 'immediate' ? 660 : 659), 'and at the first call');
}
$node->safe_psql('postgres', $close);
left_is(659, 'when it is closed');

# ---- two databases ----

$two->quit;
$node->safe_psql('postgres', 'CREATE DATABASE other TEMPLATE postgres');
$node->safe_psql('other', call('a', 9));
left_is(659, 'calls in a copy are its own');
is($node->safe_psql('other', "SELECT string_agg(w::text, ' ') FROM wrong w"), '', 'there, too, when another database has put its counters out of memory');
$node->safe_psql('other', "$close; $evict");
is($node->safe_psql('other', call('a', 0)), 'allowed|650', 'and closed');

# ---- where rows cannot be read straight ----

$node->safe_psql('postgres', call('a', 1));
$node->safe_psql('postgres', q{SET kavach.allow_alter = on; DROP INDEX kavach.audit_log_2026_03_batch_idx, kavach.audit_log_2026_03_agent_id_ts_idx;
	ALTER TABLE kavach.usage_scope ENABLE ROW LEVEL SECURITY; ALTER TABLE kavach.tail ENABLE ROW LEVEL SECURITY});
left_is(658, 'by statements');
$node->safe_psql('postgres', $close);
left_is(658, 'closed, and by statements');
$node->stop;
done_testing();
