# race.pl: sixteen connections and a budget that is too small for them.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('race');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nmax_connections = 40\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_' || n, 'user_' || n % 4, 'tenant_' || n % 2, permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(0, 15) n;
	SELECT kavach_create_policy(tenant_id => 'tenant_0', limits => '{"max_tokens_cost_per_day": 250}'),
	       kavach_create_policy(each => 'user', limits => '{"max_calls_per_hour": 140}'),
	       kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 5000}', action => 'throttle');
});

sub pgbench
{
	my ($name, $script) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/$name.sql";
	append_to_file($file, $script);
	$node->command_ok([ 'pgbench', '-n', '-c', '16', '-j', '2', '-t', '60', '-f', $file, 'postgres' ], $name);
}
# 480 calls at tenant_0 for its 250 tokens; 480 at tenant_1, whose two users may make 140 calls each.
pgbench('one token a call', "SELECT code FROM kavach_authorize('agt_' || :client_id, 'run', 'x', tokens_cost => 1);\n");
is($node->safe_psql('postgres', q{SELECT tenant_id, count(*), count(*) FILTER (WHERE result = 'allowed'), sum(tokens_cost) FROM kavach.audit_log GROUP BY 1 ORDER BY 1}),
	"tenant_0|480|250|250\ntenant_1|480|280|280", 'exactly the limit is admitted, and every call has its row');
is($node->safe_psql('postgres', q{SELECT max(n) FROM (SELECT count(*) AS n FROM kavach.audit_log WHERE result = 'allowed' GROUP BY user_id) AS u}), '140', 'and no user has more calls than allowed');

# Larger costs, partial grants, settlements and rollbacks.
$node->safe_psql('postgres', q{SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy; SELECT kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 3000}')});
pgbench('all sorts', q{
\set cost random(1, 40)
\set spent random(0, 1)
\set undo random(1, 3)
BEGIN;
SELECT audit_id, coalesce(tokens_granted, 0) AS granted FROM kavach_authorize('agt_' || :client_id, 'run', 'x', tokens_cost => :cost, min_tokens => 1)
\gset
\if :undo = 1
ROLLBACK;
\else
COMMIT;
\if :granted > 0 and :undo = 2
SELECT kavach_record_usage('agt_' || :client_id, :spent * :granted, ':audit_id');
\endif
\endif
});
is($node->safe_psql('postgres', q{SELECT sum(tokens_cost) <= 3000, count(*) FILTER (WHERE code = 'budget_exceeded') > 0 FROM kavach.audit_log}),
	't|t', 'the limit was reached and not passed');
is($node->safe_psql('postgres', q{SELECT used - (SELECT sum(tokens_cost) FROM kavach.audit_log) FROM kavach.budget_status}), '0', 'and the budget is what the ledger says');
my $left = $node->safe_psql('postgres', q{SELECT 3000 - sum(tokens_cost) FROM kavach.audit_log});
is($node->safe_psql('postgres', "SELECT coalesce(tokens_granted, 0), tokens_remaining FROM kavach_authorize('agt_1', 'run', 'x', 3000, min_tokens => 1)"), "$left|0", 'to the last token');
$node->stop;
done_testing();
