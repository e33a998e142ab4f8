# share.pl: one transaction that makes twenty thousand calls leaves room for everybody else.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Judge;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('share');
$node->init;
# PostgreSQL::Test::Cluster lowers what it can; these are the server's own defaults, but for the counters.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nmax_connections = 100\nmax_locks_per_transaction = 64\nkavach.max_counters = 16384\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	INSERT INTO kavach.agent (agent_id, user_id) SELECT 'agt_' || n, 'ann' FROM generate_series(0, 19999) n;
	INSERT INTO kavach.permission (agent_id, resource, actions) SELECT agent_id, '*', '{run}' FROM kavach.agent;
	SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_per_hour": 10000000}');
});
Judge::install($node);
my $one = Session->new($node);
my $two = Session->new($node);

sub others_work
{
	my ($when) = @_;
	is($two->query(q{SELECT code FROM kavach_authorize('agt_19999', 'run', 'x', tokens_cost => 0, request_id => gen_random_uuid()::text)}), 'allowed', "$when: others are admitted");
	is($two->query(q{SELECT code FROM kavach_record_usage('agt_19998', 0, request_id => gen_random_uuid()::text)}), 'recorded', 'and record usage');
	is($two->query('CREATE TABLE t (); DROP TABLE t; SELECT 1'), '1', 'tables are made');
	$node->command_ok([ 'pg_dump', '-s', '-f', '/dev/null', 'postgres' ], 'and dumps');
	is($two->query(q{SELECT count(*) < 200 FROM pg_locks WHERE locktype = 'userlock'}), 't', 'the lock table is not full of locks of ours');
	return;
}

# Twenty thousand authorizations of a thousand agents, each with its request_id, and then their settlements.
$one->query('BEGIN');
is($one->query(q{SELECT count(*) FROM generate_series(0, 19999) n, LATERAL kavach_authorize('agt_' || n % 1000, 'run', 'x', tokens_cost => 10, request_id => 'r' || n) WHERE allowed}),
	'20000', 'twenty thousand calls in one transaction, more than there are locks');
others_work('before it has committed');
$one->query('COMMIT');
$one->query('BEGIN');
is($one->query(q{SELECT count(*), sum(u.tokens_charged) FROM kavach.unsettled s, LATERAL kavach_record_usage(s.agent_id, 4, audit_id => s.id) u WHERE s.tokens_cost > 0}),
	'20000|-120000', 'twenty thousand settlements in one transaction');
others_work('before it has committed');
$one->query('COMMIT');
$node->safe_psql('postgres', 'ANALYZE');
is(Judge::faults($node), '', 'counters, budgets and reports agree with the ledger');
is($node->safe_psql('postgres', 'SELECT count(*) > 4000 FROM kavach.counters'), 't', 'of which there are some thousands');

# Twenty thousand agents are more than there are counters.
$one->query('BEGIN');
my $all = q{SELECT count(*) FROM kavach.agent, LATERAL kavach_authorize(agent_id, 'run', 'x', tokens_cost => 1)};
like($one->query($all), qr/53400/, 'twenty thousand agents in one transaction: an error of its own');
my ($status, $out, $err) = $node->psql('postgres', $all);
like($err, qr/one transaction may hold 4096/, 'which says how many it may hold');
$one->query('ROLLBACK');
$one->query('BEGIN');
is($one->query(q{SELECT count(*) FROM generate_series(0, 4000) n, LATERAL kavach_authorize('agt_' || 5000 + n, 'run', 'x', tokens_cost => 1) WHERE allowed}), '4001', 'four thousand pass');
$one->query('SAVEPOINT s');
like($one->query(q{SELECT count(*) FROM generate_series(0, 4000) n, LATERAL kavach_authorize('agt_' || 10000 + n, 'run', 'x', tokens_cost => 1)}), qr/53400/, 'more in a savepoint do not');
$one->query('ROLLBACK TO s');
others_work('after that');
$one->query('COMMIT');
is($node->safe_psql('postgres', q{SELECT count(*) FROM kavach.audit_log WHERE tokens_cost = 1}), '4001', 'what passed is there');
is(Judge::faults($node), '', 'counters, budgets and reports agree with the ledger');
$_->quit for $one, $two;

# ---- a share that ends between an entry and its spare ----

$node->append_conf('postgresql.conf', "kavach.max_counters = 1024");
$node->restart;
$one = Session->new($node);
$two = Session->new($node);
my $three = Session->new($node);
$_->[0]->query("BEGIN; SET LOCAL kavach.clock = '2026-03-10 $_->[1]:30:00+00'; SELECT FROM kavach_authorize('agt_0', 'run', 'x')") for [ $one, 13 ], [ $two, 14 ];
# One agent more each time, until agt_0, two of whose hours are in use, is one entry too many.
like($three->query(q{BEGIN; SET LOCAL kavach.clock = '2026-03-10 15:30:00+00';
	DO $$ BEGIN FOR n IN 1 .. 300 LOOP
	  PERFORM kavach_authorize('agt_' || n, 'run', 'x');
	  BEGIN PERFORM kavach_authorize('agt_0', 'run', 'x'); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END;
	END LOOP; END $$}), qr/53400/, 'a transaction has its share, and an agent needs two entries more');
$_->query('ROLLBACK') for $one, $two, $three;
is($one->query(q{SELECT count(*) FROM kavach.counters WHERE subject = 'agt_0' AND period_start IS DISTINCT FROM '-infinity' AND pins = 0 AND tokens_used IS NULL}), '0', 'nothing is left of what it could not have');
is(Judge::faults($node), '', 'counters, budgets and reports agree with the ledger');
is($one->query('SELECT kavach_reload_counters() > 0'), 't', 'and counters can be dropped');
$_->quit for $one, $two, $three;
$node->stop;
done_testing();
