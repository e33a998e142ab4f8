# turns.pl: eight clients whose time runs through turns of the hour, the day and the month, and that settle late: no
# window ever admits more than its limit, whatever is given back in the next one.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Judge;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('turns');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nmax_connections = 40\ntimezone = 'UTC'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_' || n, 'user_' || n % 3, 'tenant_' || n % 2, permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(0, 7) n;
	SELECT kavach_create_policy(each => 'agent', limits => '{"max_tokens_cost_per_hour": 700}'),
	       kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_day": 27500}'),
	       kavach_create_policy(tenant_id => 'tenant_0', limits => '{"max_tokens_cost_per_month": 46000, "max_tokens_cost_per_hour": 2000}'),
	       kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_per_hour": 3500}', action => 'throttle');
	CREATE SEQUENCE clock; -- a call every 40 seconds, for two days about the turn of a month
});
Judge::install($node);

# Half of what is granted is settled late, up to three hours; none for more than was granted.
my $script = PostgreSQL::Test::Utils::tempdir() . '/turns.sql';
append_to_file($script, q{
\set cost random(1, 300)
\set spent random(0, 100)
\set late random(0, 10800)
SELECT set_config('kavach.clock', (timestamptz '2026-03-31 00:00Z' + nextval('clock') * interval '40 seconds')::text, false)
\gset
SELECT audit_id, coalesce(tokens_granted, 0) AS granted FROM kavach_authorize('agt_' || :client_id, 'run', 'x', tokens_cost => :cost, min_tokens => 1)
\gset
\if :granted > 0
SELECT set_config('kavach.clock', (current_setting('kavach.clock')::timestamptz + (:late * (:spent % 2)) * interval '1 second')::text, false)
\gset
SELECT tokens_charged FROM kavach_record_usage('agt_' || :client_id, :granted * :spent / 100, ':audit_id');
\endif
});
$node->command_ok([ 'pgbench', '-n', '-c', '8', '-j', '2', '-t', '500', '-f', $script, 'postgres' ], 'four thousand calls in two days, settled in the same hour or later');

# What a window's calls have kept in the end, by the ledger's rows alone.
my $kept = q{
	WITH call AS (
	  SELECT a.agent_id, a.user_id, a.tenant_id, a.ts, a.tokens_cost + coalesce(u.tokens_cost, 0) AS kept, a.tokens_cost, u.ts AS settled
	    FROM kavach.audit_log a LEFT JOIN kavach.audit_log u ON u.settles = a.id
	   WHERE a.kind = 'authorize' AND a.result = 'allowed'),
	used AS (
	  SELECT 'agent ' || agent_id AS who, 'hour' AS period, date_trunc('hour', ts) AS start, sum(kept) AS kept, 700 AS amount FROM call GROUP BY agent_id, 3
	   UNION ALL SELECT 'user ' || user_id, 'day', date_trunc('day', ts), sum(kept), 27500 FROM call GROUP BY user_id, 3
	   UNION ALL SELECT tenant_id, 'month', date_trunc('month', ts), sum(kept), 46000 FROM call WHERE tenant_id = 'tenant_0' GROUP BY tenant_id, 3
	   UNION ALL SELECT tenant_id, 'hour', date_trunc('hour', ts), sum(kept), 2000 FROM call WHERE tenant_id = 'tenant_0' GROUP BY tenant_id, 3
	   UNION ALL SELECT 'all', 'hour', date_trunc('hour', ts), sum(kept), 3500 FROM call GROUP BY 3)};
is($node->safe_psql('postgres', "$kept SELECT * FROM used WHERE kept > amount"), '', 'no window has kept more than its limit');
is($node->safe_psql('postgres', "$kept SELECT count(DISTINCT start) > 40 FROM used WHERE period = 'hour'"), 't', 'of over forty hours');
for my $period (qw(hour day month))
{
	is($node->safe_psql('postgres', "$kept SELECT count(*) > 5 FROM call WHERE settled >= date_trunc('$period', ts) + interval '1 $period' AND kept < tokens_cost"), 't', "some were settled after the turn of the $period");
}
is($node->safe_psql('postgres', q{SELECT count(*) > 100 FROM kavach.audit_log WHERE code = 'budget_exceeded' OR tokens_cost < tokens_requested}), 't', 'and many did not fit');

# Counters as the load left them, then as they are read from the ledger; budgets in an hour of the load's.
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET kavach.clock = '2026-04-01 12:00:00+00'});
is(Judge::faults($node), '', 'the counters are what the ledger says');
my $clocks = q{SELECT DISTINCT date_trunc('hour', ts) AS at FROM kavach.audit_log};
for my $moment ('as they are', 'read again')
{
	is($node->safe_psql('postgres', qq{
		DO \$\$ DECLARE c record; BEGIN
		  FOR c IN $clocks LOOP
		    PERFORM set_config('kavach.clock', c.at::text, false);
		    PERFORM kavach_check_budget('agt_' || n) FROM generate_series(0, 7) n;
		  END LOOP;
		END \$\$;
		SELECT count(*) > 60 FROM kavach.counters}), 't', "$moment: many windows are in memory");
	is(Judge::faults($node), '', 'and are what the ledger says');
	$node->restart;
}
$node->stop;
done_testing();
