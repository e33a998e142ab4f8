# template.pl: CREATE DATABASE ... TEMPLATE gives a copy with the same figures, and each counts by itself from there on.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('template');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE original');
$node->safe_psql('original', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 6}}]');
	SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_total": 100}');
	SELECT kavach_authorize('agt_a', 'run', 'x', 30);
	SELECT kavach_reset_policy(policy_id) FROM kavach.budget_policy;
	SELECT kavach_authorize('agt_a', 'run', 'x', 40, request_id => 'r');
});

# The original's counters are in memory when it is copied; of either strategy.
for my $strategy (qw(wal_log file_copy))
{
	$node->safe_psql('postgres', "DROP DATABASE IF EXISTS copy");
	$node->safe_psql('postgres', "CREATE DATABASE copy TEMPLATE original STRATEGY $strategy");
	for my $query ('SELECT * FROM kavach.budget_status', 'SELECT * FROM kavach.ledger ORDER BY id', q{SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 40, request_id => 'r')})
	{
		is($node->safe_psql('copy', $query), $node->safe_psql('original', $query), "the same in both: $query");
	}
}
my ($original, $copy) = map { Session->new($node, $_) } qw(original copy);
my $call = "SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', %d)";
my $sums = q{SELECT sum(tokens_cost), (SELECT tokens_used FROM kavach.counters WHERE (scope, period) = ('tenant', 'total')) FROM kavach.audit_log};

is($copy->query(sprintf $call, 60), 'allowed|0', 'the copy has what was left');
is($original->query(sprintf $call, 50), 'allowed|10', 'and so has the original');
is($copy->query(sprintf $call, 1), 'budget_exceeded|0', 'each by itself');
$copy->query(q{SELECT kavach_adjust('agt_a', -5, 'x')});
is($original->query(q{BEGIN; SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', 10, request_id => 's')}), 'allowed|0', 'a call that is open in one');
is($copy->query(q{SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', 5, request_id => 's')}), 'allowed|0', 'has nothing to do with the other, by the same request_id');
$original->query('ROLLBACK');
is($original->query($sums), '120|120', 'the original has counted its calls');
is($copy->query($sums), '130|130', 'and the copy its own');
$copy->query(q{SELECT kavach_revoke_agent('agt_a')});
is($original->query(sprintf $call, 10), 'allowed|0', 'an agent that is revoked in one is active in the other');
$original->query('BEGIN; ' . sprintf $call, 0);
is($copy->query('SELECT kavach_reload_counters() > 0'), 't', 'counters are dropped in one');
is($original->query('COMMIT; SELECT count(*) > 0 FROM kavach.counters'), 't', 'and not in the other');
$_->quit for $original, $copy;
$node->stop;
done_testing();
