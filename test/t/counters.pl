# counters.pl: counters are a cache of the ledger, and the cached lookups one of agents and policies: neither is ever stale.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('counters');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\ndeadlock_timeout = 10s");
$node->start;
my $world = q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_' || n, 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(1, 3) n;
	SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 100}')};
$node->safe_psql('postgres', $world);
# Of the counters in memory, those that are not what the ledger says, or are still held.
$node->safe_psql('postgres', q{
	CREATE VIEW wrong AS
	SELECT c.*, l.tokens, l.calls
	  FROM kavach.counters c
	 CROSS JOIN LATERAL (
	   SELECT CASE c.scope WHEN 'permission' THEN 0 ELSE coalesce(sum(tokens_cost), 0) END AS tokens, count(*) FILTER (WHERE kind = 'authorize') AS calls
	     FROM kavach.audit_log
	    WHERE result = 'allowed'
	      AND CASE c.scope WHEN 'agent' THEN agent_id = c.subject WHEN 'user' THEN user_id = c.subject WHEN 'tenant' THEN tenant_id = c.subject
	            WHEN 'permission' THEN permission_id::text = c.subject ELSE true END
	      AND CASE c.period WHEN 'total' THEN true WHEN 'five_minutes' THEN date_bin('5 min', ts, '2000-01-01 00:00:00+00') = c.period_start
	            ELSE date_trunc(c.period, ts, 'UTC') = c.period_start END) AS l
	 WHERE c.pins <> 0 OR c.tokens_pending <> 0 OR c.calls_pending <> 0 OR (c.tokens_used, c.calls_used) <> (l.tokens, l.calls);
	CREATE VIEW verdict AS
	SELECT CASE WHEN EXISTS (SELECT FROM kavach.counters WHERE (tokens_used, calls_used) <> (0, 0)) THEN 'some' ELSE 'none' END AS compared,
	       (SELECT string_agg(w::text, ' ') FROM wrong w) AS wrong});

my $one = Session->new($node);
my $two = Session->new($node);
my $three = Session->new($node);
sub call { my ($n, $cost) = @_; return "SELECT code, tokens_remaining FROM kavach_authorize('agt_$n', 'run', 'x', tokens_cost => $cost)" }
sub waits
{
	my ($session, $for) = @_;
	return $node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = ' . $session->pid . " AND $for");
}

# ---- kavach_reload_counters ----

is($one->query(call(1, 10)), 'allowed|90', 'a call');
like($one->query('BEGIN; ' . call(1, 1) . '; SELECT kavach_reload_counters()'), qr/25001/, 'no reload in a transaction that has charged');
$one->query('ROLLBACK');
like($one->query('BEGIN; SAVEPOINT a; ' . call(1, 1) . '; RELEASE a; SELECT kavach_reload_counters()'), qr/25001/, 'nor after a savepoint that has');
$one->query('ROLLBACK');
like($one->query('BEGIN; SAVEPOINT a; ' . call(1, 1) . '; ROLLBACK TO a; SELECT kavach_reload_counters() > 0; COMMIT'), qr/^allowed\|89\nt$/, 'but after one that was rolled back');

$one->query('BEGIN; ' . call(1, 5));
$two->send('SELECT kavach_reload_counters() > 0');
ok(waits($two, "relation = 'kavach.audit_log'::regclass AND mode = 'ShareRowExclusiveLock'"), 'it waits for an open charge, as pg_locks shows');
$three->send(call(2, 7));
ok(waits($three, "relation = 'kavach.audit_log'::regclass AND mode = 'RowExclusiveLock'"), 'and others wait for it');
$one->query('COMMIT');
is($two->answer, 't', 'when the charge is committed it drops the counters');
is($three->answer, 'allowed|78', 'and the next call reads them from the ledger');
$two->query('BEGIN; SELECT kavach_reload_counters()');
$three->send(call(2, 8));
ok(waits($three, "mode = 'RowExclusiveLock'"), 'until its transaction ends nobody charges');
is($two->query(call(3, 1)), 'allowed|77', 'but itself');
$two->query('ROLLBACK');
is($three->answer, 'allowed|70', 'and others after it, whether it commits or not');
is($one->query('TABLE verdict'), 'some|', 'the counters are right');

$node->safe_psql('postgres', 'CREATE TABLE t ()');
$one->query(q{SET deadlock_timeout = '1ms'; BEGIN; } . call(1, 1));
$two->query('BEGIN; LOCK t');
$two->send('SELECT kavach_reload_counters() > 0');
waits($two, "mode = 'ShareRowExclusiveLock'");
like($one->query('LOCK t'), qr/40P01/, 'a deadlock with a reload is detected');
$one->query('ROLLBACK; RESET deadlock_timeout');
is($two->answer, 't', 'and the reload goes on');
$two->query('COMMIT');

# ---- rows that were put in by hand ----

is($two->query(call(2, 0)), 'allowed|70', 'the counters are in memory');
$one->query(q{INSERT INTO kavach.audit_log (id, ts, kind, agent_id, user_id, result, code, tokens_cost) VALUES (gen_random_uuid(), '2026-03-10 12:00:00+00', 'usage', 'agt_1', 'ann', 'allowed', 'recorded', 20)});
is($two->query(call(2, 0)), 'allowed|70', 'rows that were inserted by hand are not counted');
$one->query('SELECT kavach_reload_counters()');
is($two->query(call(2, 0)), 'allowed|50', 'until the counters are read again');

# ---- the extension is dropped and created anew, the table cloned ----

$node->safe_psql('postgres', 'CREATE DATABASE clone TEMPLATE postgres') if eval { $_->quit for $one, $two, $three; 1 };
$one = Session->new($node);
$two = Session->new($node, 'clone');
is($two->query(call(2, 10)), 'allowed|40', 'a clone of the database, with the same ledger by its OID');
is($one->query(call(2, 0)), 'allowed|50', 'has counters of its own');
is($two->query('TABLE verdict'), 'some|', 'which are right');
is($two->query(qq{SET kavach.allow_drop = on; DROP VIEW verdict, wrong; DROP EXTENSION kavach CASCADE; $world; } . call(1, 1)) =~ s/^.*\n//sr, 'allowed|99', 'DROP and CREATE EXTENSION leave no stale counters');
$two->quit;
is($one->query('TABLE verdict'), 'some|', 'here as well');
is($one->query('BEGIN; SET LOCAL kavach.allow_drop = on; DROP VIEW verdict, wrong; DROP EXTENSION kavach; ROLLBACK; ' . call(2, 0)), 'allowed|50', 'and a DROP that is rolled back changes nothing');

# ---- who only looks loads as a call does, once ----

sub loads { return $one->query('SELECT loads FROM kavach.counter_stats') }
my $first = $one->query(q{SELECT audit_id FROM kavach_authorize('agt_1', 'run', 'x', 0, request_id => 'looked')});
for my $look (q{SELECT tokens_remaining FROM kavach_check_budget('agt_1')},
	q{SELECT tokens_remaining FROM kavach_authorize('agt_1', 'run', 'x', 0, request_id => 'looked')},
	q{SELECT tokens_remaining FROM kavach_record_usage('agt_1', 0, request_id => 'looked')})
{
	$one->query('SELECT kavach_reload_counters()');
	is($one->query("BEGIN; $look"), 50, "from the ledger: $look");
	my $loads = loads();
	is($one->query($look), 50, 'and again') for 1 .. 2;
	is(loads(), $loads, 'which is read once');
	is($one->query('SELECT count(*) > 0, sum(pins) FROM kavach.counters'), 't|0', 'and nothing is held, in an open transaction neither') if $look =~ /check/;
	$one->query('COMMIT');
	is($one->query('TABLE verdict'), 'some|', 'the counters are right');
}
$one->query('SELECT kavach_reload_counters()');
is($one->query(q{BEGIN READ ONLY; SELECT tokens_remaining FROM kavach_check_budget('agt_1')}), 50, 'in a read-only transaction too');
my $other = Session->new($node);
like($other->query('SELECT kavach_reload_counters() > 0'), qr/^t$/, 'which holds up no reload');
$one->query('COMMIT');
$other->quit;

# ---- own changes that are rolled back ----

$two = Session->new($node);
sub both
{
	my ($answer, $name) = @_;
	is($_->query(call(1, 0)), $answer, $name) for $one, $two;
	return;
}
both('allowed|50', 'both sessions know the agent');
my %changes = (
	'a permission revoked' => [ q{SELECT kavach_revoke_permission(permission_id) FROM kavach.permission WHERE agent_id = 'agt_1'}, 'permission_denied|' ],
	'an agent revoked' => [ q{SELECT kavach_revoke_agent('agt_1')}, 'agent_revoked|' ],
	'an agent expired' => [ q{SELECT kavach_update_agent('agt_1', '{"expires_at": "2026-03-10 11:00:00+00"}')}, 'agent_expired|' ],
	'another owner' => [ q{SELECT kavach_update_agent('agt_1', '{"user_id": "bob"}')}, 'allowed|' ],
	'a lower limit' => [ q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 1}') FROM kavach.budget_policy}, 'budget_exceeded|0' ],
	'a policy dropped' => [ q{SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy}, 'allowed|' ],
	'a policy added' => [ q{SELECT kavach_create_policy(agent_id => 'agt_1', limits => '{"max_tokens_cost_total": 0}') IS NOT NULL}, 'budget_exceeded|0' ],
	'a reset' => [ q{SELECT kavach_reset_policy(policy_id) FROM kavach.budget_policy}, 'allowed|100' ],
	'permissions truncated' => [ 'TRUNCATE kavach.permission', 'permission_denied|' ]);
for my $what (sort keys %changes)
{
	my ($change, $then) = @{ $changes{$what} };
	$one->query("BEGIN; $change");
	is($one->query(call(1, 0)), $then, "$what: known to its own transaction at once");
	is($two->query(call(1, 0)), 'allowed|50', 'and not to others');
	$one->query('ROLLBACK');
	both('allowed|50', 'rolled back, it has left no trace');
	$one->query("BEGIN; SAVEPOINT a; $change; " . call(1, 0) . '; ROLLBACK TO a');
	is($one->query(call(1, 0)), 'allowed|50', 'nor has one that was rolled back to a savepoint');
	$one->query('COMMIT');
	both('allowed|50', 'to the end of the transaction and after');
}
$two->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$one->query(q{SELECT kavach_revoke_agent('agt_1')});
is($two->query(call(1, 0)), 'agent_revoked|', 'what is committed is obeyed by the next call, in a transaction that is open already as well');
$two->query('COMMIT');
$one->query(q{SELECT kavach_restore_agent('agt_1')});
both('allowed|50', 'and so is its restoration');

# ---- rates, restarts ----

$one->query(q{SELECT kavach_create_agent('agt_r', 'rob', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 3}}]')});
sub rated { return $one->query("SET kavach.clock = '2026-03-10 $_[0]+00'; SELECT code, retry_at FROM kavach_authorize('agt_r', 'run', 'x')") }
$one->query("SET TimeZone = 'UTC'");
is(rated($_), 'allowed|', "a call at $_") for '12:00:00', '12:03:00', '12:58:00';
$one->quit;
$two->quit;
$node->restart;
$one = Session->new($node);
$one->query("SET TimeZone = 'UTC'");
is(rated('12:59:00'), 'rate_limited|2026-03-10 13:05:00+00', 'a rate per hour survives a restart');
$one->query('BEGIN');
is(rated('13:05:00'), 'allowed|', 'it has room when calls have left the hour');
is(rated('13:05:00'), 'allowed|', 'as much as they took');
is(rated('13:05:00'), 'rate_limited|2026-03-10 14:00:00+00', 'and no more');
$one->query('ROLLBACK');
is(rated('13:05:00'), 'allowed|', 'a rollback gives the rate back');
is($one->query('TABLE verdict'), 'some|', 'the counters are right');
$node->stop('immediate');
eval { $one->quit };
$node->start;
$one = Session->new($node);
$one->query("SET TimeZone = 'UTC'");
is(rated('13:06:00'), 'allowed|', 'it survives a crash');
is(rated('13:06:00'), 'rate_limited|2026-03-10 14:00:00+00', 'with every call');
is($one->query('TABLE verdict'), 'some|', 'the counters are right');
$one->quit;

# ---- few counters ----

$node->append_conf('postgresql.conf', "kavach.max_counters = 64");
$node->restart;
like(slurp_file($node->logfile), qr/kavach\.max_counters is low/, 'the log warns of few counters');
$one = Session->new($node);
is($one->query(q{SELECT count(kavach_create_agent('agt_' || n, 'user_' || n, 'tenant_' || n, permissions => '[{"resource": "*", "actions": ["*"]}]')) FROM generate_series(10, 99) n}), '90', 'ninety agents');
is($one->query(q{SELECT kavach_create_policy(each => 'agent', limits => '{"max_calls_total": 3}') IS NOT NULL}), 't', 'a limit for each');
$one->query('DO $$ BEGIN FOR round IN 1 .. 4 LOOP FOR n IN 10 .. 99 LOOP PERFORM kavach_authorize(format(\'agt_%s\', n), \'run\', \'x\', tokens_cost => round); COMMIT; END LOOP; END LOOP; END $$');
is($one->query(q{SELECT count(*), sum(tokens_cost) FROM kavach.audit_log WHERE result = 'allowed' AND agent_id ~ '^agt_\d\d$'}), '270|540', 'entries come and go, and each has exactly three calls');
is($one->query('SELECT evictions > 1000, refusals FROM kavach.counter_stats'), 't|0', 'many times');
is($one->query('TABLE verdict'), 'some|', 'the counters are right');
$two = Session->new($node);
$one->query('BEGIN; SELECT kavach_authorize(\'agt_\' || n, \'run\', \'x\') FROM generate_series(10, 30) n');
like($two->query(q{SELECT kavach_authorize('agt_40', 'run', 'x')}), qr/53200/, 'where all are in use a call fails');
is($one->query('SELECT refusals > 0 FROM kavach.counter_stats'), 't', 'and is counted as refused for want of room');
$one->query('COMMIT');
is($two->query(q{SELECT code FROM kavach_authorize('agt_40', 'run', 'x')}), 'budget_exceeded', 'later it is answered');
is($one->query('TABLE verdict'), 'some|', 'the counters are right');
$_->quit for $one, $two;

# ---- without preload ----

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
for my $sql (call(1, 1), q{SELECT kavach_record_usage('agt_1', 1)}, q{SELECT kavach_adjust('agt_1', 1, 'x')}, 'SELECT kavach_reload_counters()')
{
	my ($status, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");
	like($err, qr/55000.*shared_preload_libraries = 'kavach'/s, "without preload a hint gives the line to add: $sql");
}
is($node->safe_psql('postgres', q{SELECT code, tokens_remaining FROM kavach_check_budget('agt_1')}), 'budget_exceeded|50', 'what the ledger can answer is answered');
is($node->safe_psql('postgres', q{SELECT sum(tokens_cost) >= 50 FROM kavach.ledger}), 't', 'reports work');
is($node->safe_psql('postgres', q{SELECT kavach_revoke_agent('agt_1'); SELECT code FROM kavach_check_budget('agt_1')}), "t\nagent_revoked", 'and so does administration');
$node->stop;
done_testing();
