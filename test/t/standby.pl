# standby.pl: a hot standby answers what only reads, as far as it has replayed, and refuses the rest; promoted, it goes
# on where the primary was.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\ntimezone = 'UTC'");
$primary->start;
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

my $permission = '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 6}}]';
$primary->safe_psql('postgres', qq{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '$permission'),
	       kavach_create_agent('agt_b', 'bob', 'acme', permissions => '$permission'),
	       kavach_create_agent('agt_c', 'cyd', permissions => '$permission'),
	       kavach_create_agent('agt_d', 'dan', permissions => '[{"resource": "mail", "actions": ["send"], "constraints": {"max_calls_per_hour": 1}}]');
	SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_total": 1000, "max_tokens_cost_per_month": 400}'),
	       kavach_create_policy(each => 'user', limits => '{"max_calls_per_day": 3}', action => 'throttle'),
	       kavach_create_policy(user_id => 'bob', limits => '{"max_tokens_cost_total": 100}');
	SET kavach.clock = '2026-02-28 23:00:00+00';
	SELECT kavach_authorize('agt_a', 'run', 'x', 100), kavach_authorize('agt_b', 'run', 'x', 80);
	SET kavach.clock = '2026-03-10 12:00:00+00';
	SELECT kavach_authorize('agt_d', 'send', 'mail');
	SELECT kavach_authorize('agt_a', 'run', 'x', 200, request_id => 'a'), kavach_authorize('agt_b', 'run', 'x', 30), kavach_authorize('agt_nobody', 'run', 'x');
	SELECT kavach_reset_policy(policy_id) FROM kavach.budget_policy WHERE subject = 'bob';
	SELECT kavach_authorize('agt_b', 'run', 'x', 60, request_id => 'b'), kavach_adjust('agt_b', -5, 'goodwill')});
$primary->safe_psql('postgres', q{SELECT kavach_record_usage('agt_a', 150, request_id => 'a')});
$primary->wait_for_catchup($standby);

# ---- what reads ----

sub same
{
	my ($query) = @_;
	my $here = $primary->safe_psql('postgres', $query);
	isnt($here, '', 'there is something to compare');
	is($standby->safe_psql('postgres', $query), $here, $query);
	return;
}
same("SELECT * FROM $_")
  for ('kavach_query_audit()', 'kavach_cost_by_agent(NULL, NULL)', 'kavach_cost_by_user(NULL, NULL)', 'kavach_cost_by_day(NULL, NULL, NULL)',
	'kavach_billing_report(2026, 2)', 'kavach_billing_report(2026, 3)', 'kavach_export()', 'kavach_export_json()',
	'kavach.usage', 'kavach.usage_by_agent', 'kavach.usage_by_user', 'kavach.usage_by_day', 'kavach.ledger', 'kavach.unsettled', 'kavach.budget_status');
same("SELECT * FROM kavach_check_budget('$_', 62)") for qw(agt_a agt_b agt_c agt_nobody);
same("SELECT * FROM kavach_check_budget('$_', 62, 'send', 'mail', min_tokens => 5)") for qw(agt_a agt_b agt_c agt_d agt_nobody);
is($standby->safe_psql('postgres', q{SELECT code, calls_remaining, retry_at, http_status FROM kavach_check_budget('agt_d', NULL, 'send', 'mail')}),
	'rate_limited|0|2026-03-10 13:05:00+00|429', 'a rate per hour is read from the ledger there');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM kavach.counters'), '0', 'no counters are in memory there');

# ---- what writes ----

my $id = $primary->safe_psql('postgres', 'SELECT id FROM kavach.unsettled LIMIT 1');
for my $call (
	q{kavach_authorize('agt_a', 'run', 'x', 1)}, q{kavach_authorize('agt_a', 'run', 'x', 200, request_id => 'a')},
	q{kavach_record_usage('agt_a', 1)}, qq{kavach_record_usage('agt_b', 1, '$id')}, q{kavach_adjust('agt_a', 1, 'x')},
	q{kavach_revoke_agent('agt_a')}, q{kavach_create_policy(user_id => 'ann', limits => '{}')})
{
	my ($status, $out, $err) = $standby->psql('postgres', "\\set VERBOSITY verbose\nSELECT $call");
	like($err, qr/ERROR:  25006: cannot execute .+ in a read-only transaction/, "refused: $call");
}

# ---- an open session there sees what is replayed ----

my $session = Session->new($standby);
my $check = sub { $session->query("SELECT code, tokens_remaining, calls_remaining FROM kavach_check_budget('agt_$_[0]', 62)") };
sub replay
{
	$primary->safe_psql('postgres', shift);
	$primary->wait_for_catchup($standby);
	return;
}
is($check->('b'), 'budget_exceeded|45|2', 'an open session there');
replay(q{SELECT kavach_adjust('agt_b', -20, 'goodwill')});
is($check->('b'), 'allowed|65|2', 'sees usage');
replay(q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 80}') FROM kavach.budget_policy WHERE subject = 'bob'});
is($check->('b'), 'budget_exceeded|45|2', 'a lower limit');
replay(q{SELECT kavach_revoke_agent('agt_b')});
is($check->('b'), 'agent_revoked||', 'a revocation');
replay(q{SELECT kavach_restore_agent('agt_b'); SET kavach.clock = '2026-05-01'; SELECT kavach_authorize('agt_a', 'run', 'x', 399)});
is($session->query(q{SET kavach.clock = '2026-05-01'; SELECT code, tokens_remaining FROM kavach_check_budget('agt_a', 2)}), 'budget_exceeded|1', 'and a new month');
$session->query('RESET kavach.clock');

# ---- promoted ----

is($check->('a'), 'allowed|215|2', 'before it is promoted');
my $figures = 'SELECT policy_id, subject, measure, period, used, remaining, status FROM kavach.budget_status ORDER BY 1, 2, 3, 4';
my $before = $primary->safe_psql('postgres', $figures);
my %first = map { $_ => $primary->safe_psql('postgres', $_) } (
	q{SELECT audit_id, tokens_granted FROM kavach_authorize('agt_a', 'run', 'x', 200, request_id => 'a')},
	q{SELECT audit_id, tokens_granted FROM kavach_authorize('agt_b', 'run', 'x', 60, request_id => 'b')},
	q{SELECT usage_id, tokens_charged FROM kavach_record_usage('agt_a', 150, request_id => 'a')});
$primary->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', $figures), $before, 'promoted, the budgets are what they were');
is($session->query($_), $first{$_}, "a repeated call has its first answer: $_") for sort keys %first;
my $call = sub { $session->query("SELECT code, tokens_remaining, calls_remaining FROM kavach_authorize('agt_$_[0]', 'run', 'x', $_[1])") };
is($call->('b', 46), 'budget_exceeded|45|2', 'more than the rest is refused');
is($call->('b', 45), 'allowed|0|1', 'and the rest admitted');
is($call->('a', 1), 'allowed|169|1', 'the tenant has that much less');
is($call->('a', 0), 'allowed|169|0', 'the last call of the day');
is($call->('a', 0), 'budget_exceeded|169|0', 'is the last');
is($call->('c', 1), 'allowed||2', 'another user has all of them');
is($session->query(q{SELECT kavach_revoke_agent('agt_c')}), 't', 'agents can be changed there');
is($call->('c', 1), 'agent_revoked||', 'and that is obeyed');
$session->quit;
$standby->stop;
done_testing();
