# pgbench.pl: the three query protocols, simple, extended and prepared, and pipelines give the same answers.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('pgbench');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nmax_connections = 30");
$node->start;
my @modes = qw(simple extended prepared);
$node->safe_psql('postgres', q{CREATE EXTENSION kavach});
$node->safe_psql('postgres', qq{
	SELECT kavach_create_agent('agt_$_', 'user_$_', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 100}}]'),
	       kavach_create_policy(user_id => 'user_$_', limits => '{"max_tokens_cost_total": 500}')}) for @modes;
Judge::install($node);

sub pgbench
{
	my ($name, $mode, $script, $clients, $transactions) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/script.sql';
	append_to_file($file, $script);
	$node->command_ok([ 'pgbench', '-n', '-M', $mode, '-c', $clients, '-j', '2', '-t', $transactions, '-D', "agent=agt_$mode", '-f', $file, 'postgres' ], "$mode: $name");
	return;
}

# ---- one client after the other, with the same statements: refusals, partial grants, settlements, retries ----

my $script = "\\set cost 7\n" . join('', map { qq{
\\set cost (:cost * 31 + $_) % 60 + 1
\\set spent :cost / 2
SELECT code AS code, coalesce(tokens_granted, 0) AS granted FROM kavach_authorize(:agent, 'run', 'x', tokens_cost => :cost, request_id => 'r$_', min_tokens => 1)
\\gset
\\if :granted > 0
SELECT tokens_charged FROM kavach_record_usage(:agent, :spent, request_id => 'r$_');
\\endif
BEGIN;
SELECT code FROM kavach_authorize(:agent, 'run', 'x', tokens_cost => :cost);
ROLLBACK;
SELECT code, tokens_remaining FROM kavach_check_budget(:agent, :cost);
} } 1 .. 36);    # at 39 pgbench 15 writes past its array, of which AddressSanitizer tells
my %ledger;
for my $mode (@modes)
{
	my $own = $script;
	$own =~ s/:agent/':agent'/g if $mode eq 'simple';    # replaced as it stands there
	pgbench('one client', $mode, $own, 1, 2);
	$ledger{$mode} = $node->safe_psql('postgres', qq{
		SELECT kind, action, code, regexp_replace(reason, 'pol_\\w+|user_\\w+', '…', 'g'), tokens_requested, min_tokens, tokens_released, tokens_cost, request_id, settles IS NOT NULL
		  FROM kavach.audit_log WHERE agent_id = 'agt_$mode' ORDER BY kind, request_id, tokens_requested, tokens_cost, code, 4});
}
ok(scalar(split /\n/, $ledger{simple}) > 50, 'many rows');
like($ledger{simple}, qr/budget_exceeded/, 'the budget is used up in between');
is($ledger{$_}, $ledger{simple}, "$_: the same rows") for qw(extended prepared);
is(Judge::faults($node), '', 'nothing is left');

# ---- many clients under one limit, and pipelines ----

$node->safe_psql('postgres', q{
	SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy;
	SELECT kavach_revoke_permission(permission_id), kavach_grant_permission(agent_id, '*', '{*}') FROM kavach.permission});

sub admits
{
	my ($mode, $name, $script, $limit) = @_;
	my $before = $node->safe_psql('postgres', qq{
		SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy;
		SELECT kavach_create_policy(agent_id => 'agt_$mode', limits => jsonb_build_object('max_tokens_cost_total', $limit + sum(tokens_cost))) FROM kavach.audit_log WHERE agent_id = 'agt_$mode';
		SELECT count(*) FROM kavach.audit_log WHERE agent_id = 'agt_$mode'}) =~ s/.*\n//sr;
	pgbench($name, $mode, $script, 8, 10);
	is($node->safe_psql('postgres', qq{SELECT remaining FROM kavach.budget_status}), '0', 'exactly the limit is admitted');
	is($node->safe_psql('postgres', qq{SELECT count(*) - $before FROM kavach.audit_log WHERE agent_id = 'agt_$mode'}), '400', 'and every call is there');
	is(Judge::faults($node), '', 'nothing is left');
	return;
}
admits($_, 'eight clients', "SELECT code FROM kavach_authorize('agt_' || '$_', 'run', 'x', tokens_cost => 1);\n" x 5, 250) for @modes;
admits($_, 'eight clients, and pipelines', "\\startpipeline\n" . "SELECT code FROM kavach_authorize('agt_' || '$_', 'run', 'x', tokens_cost => 1);\n" x 5 . "\\endpipeline\n", 250) for qw(extended prepared);

# A pipeline is one transaction up to its end: what fails in it takes the calls before it along.
my $spent = $node->safe_psql('postgres', 'SELECT sum(tokens_cost) FROM kavach.audit_log');
my $file = PostgreSQL::Test::Utils::tempdir() . '/broken.sql';
append_to_file($file, "\\startpipeline\nSELECT kavach_authorize('agt_simple', 'run', 'x', tokens_cost => 1);\nSELECT 1 / 0;\n\\endpipeline\n");
$node->command_fails([ 'pgbench', '-n', '-M', 'extended', '-t', '1', '-f', $file, 'postgres' ], 'a pipeline with an error');
is($node->safe_psql('postgres', 'SELECT sum(tokens_cost) FROM kavach.audit_log'), $spent, 'is rolled back');
is(Judge::faults($node), '', 'nothing is left');

$node->stop;
done_testing();
