# Copy.pm: a database with something of everything, and whether copies of it go on as it would have.
#
#   $node->append_conf('postgresql.conf', $Copy::conf);
#   Copy::fill($node);                                # makes the database "old" and the role "myapp"
#   Copy::compare($node, [ 'pg_restore', $other, 'new' ], …);   # what made the copy, and where it is
package Copy;
use strict;
use warnings;
use Test::More;

our $conf = "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-02-10 12:00:00+00'";

sub fill
{
	my ($node) = @_;
	my $perm = q('[{"resource": "**", "actions": ["*"], "constraints": {"max_calls_per_hour": 8}}]');
	$node->safe_psql('postgres', 'CREATE DATABASE old');
	$node->safe_psql('old', qq{
		CREATE SCHEMA app;
		CREATE EXTENSION kavach SCHEMA app;
		ALTER DATABASE old SET search_path = app;
		SET search_path = app;
		CREATE ROLE myapp LOGIN;
		SELECT kavach_grant_role('myapp', 'app');
		SET kavach.clock = '2026-01-31 23:00:00+00';
		SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => $perm, metadata => '{"k": "ü"}'),
		       kavach_create_agent('agt_b', 'bob', 'acme', permissions => $perm),
		       kavach_create_agent('agt_gone', 'bob');
		SELECT kavach_revoke_agent('agt_gone', 'left');
		SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_total": 1000, "max_tokens_cost_per_month": 400}'),
		       kavach_create_policy(each => 'user', limits => '{"max_calls_total": 50}', action => 'throttle'),
		       kavach_create_policy(user_id => 'bob', limits => '{"max_tokens_cost_total": 100}');
		SELECT kavach_authorize('agt_a', 'run', 'x:y', 100, '{"a": "x\\\\y"}', '10.0.0.1', 'r-jan');
		SELECT kavach_authorize('agt_b', 'run', 'x:y', 80);
		SET kavach.clock = '2026-02-10 12:00:00+00';
		SELECT kavach_authorize('agt_a', 'run', 'x:y', 200, request_id => 'r-feb');
		SELECT kavach_authorize('agt_a', 'run', 'x:y', 300);
		SELECT kavach_authorize('agt_nobody', 'run', 'x:y', 300);
		SELECT kavach_adjust('agt_b', -5, 'goodwill');
		SELECT kavach_reset_policy(policy_id) FROM kavach.budget_policy WHERE subject = 'bob';
		SELECT kavach_authorize('agt_b', 'run', 'x:y', 60, request_id => 'r-bob');
	});
	$node->safe_psql('old', q{SELECT kavach_record_usage('agt_a', 150, request_id => 'r-feb')});
	# so that the worker makes none, which copies may or may not have
	$node->safe_psql('old', q{SELECT kavach_create_months(kavach.clock_now()::date, (kavach.clock_now() + interval '1 month')::date)});
	return;
}

# Every copy is what the original is, answers as it does, and both go on.
sub compare
{
	my ($original, @copies) = @_;
	my $same = sub {
		my ($query, $what) = @_;
		my $expected = $original->safe_psql('old', $query);
		isnt($expected, '', "$what: there is something to compare");
		foreach my $copy (@copies)
		{
			my ($name, $node, $database) = @$copy;
			is($node->safe_psql($database, $query), $expected, "$name: $what");
		}
	};

	$same->('SELECT tableoid::regclass, l.* FROM kavach.audit_log l ORDER BY id', 'the ledger');
	$same->("SELECT * FROM kavach.$_ ORDER BY 1, 2", $_) foreach qw(agent permission budget_policy budget_baseline);
	$same->('SELECT * FROM kavach.budget_limit ORDER BY 1, 2, 3', 'budget_limit');
	$same->('SELECT policy_id, subject, measure, period, amount, used, remaining, status FROM kavach.budget_status ORDER BY 1, 2, 3, 4', 'budget_status');
	$same->('SELECT * FROM kavach_billing_report(2026, 2) ORDER BY 1, 2', 'the bill');
	$same->(q{SELECT inhrelid::regclass::text, pg_get_expr(relpartbound, oid) FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'kavach.audit_log'::regclass ORDER BY 1}, 'partitions');
	$same->(q{SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid::regclass::text LIKE 'kavach.audit_log%' ORDER BY 1}, 'indexes');
	$same->(q{SELECT tgrelid::regclass::text, tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text LIKE 'kavach.%' ORDER BY 1, 2}, 'triggers');
	$same->('SELECT evtname, evtevent, evtfoid::regproc, evtenabled, evttags FROM pg_event_trigger', 'the event trigger');

	foreach my $call (
		q{kavach_authorize('agt_a', 'run', 'x:y', 200, request_id => 'r-feb')},         # a retry
		q{kavach_record_usage('agt_a', 150, request_id => 'r-feb')},                    # a repeated settlement
		q{kavach_authorize('agt_b', 'run', 'x:y', 41)},                                 # past what is left since the reset
		q{kavach_authorize('agt_b', 'run', 'x:y', 40)},                                 # an exact fit
		q{kavach_authorize('agt_a', 'run', 'x:y', 156)},                                # past the tenant's month
		q{kavach_authorize('agt_a', 'run', 'x:y', 155)},                                # an exact fit
		q{kavach_authorize('agt_gone', 'run', 'x:y')},
		q{kavach_authorize('agt_new', 'run', 'x:y')})
	{
		$same->("SELECT to_jsonb($call) - '{usage_id}'::text[]" . ($call =~ /request_id/ ? '' : " - 'audit_id'"), $call);
	}
	goes_on(@$_) foreach @copies;
	return;
}

sub goes_on
{
	my ($name, $node, $database) = @_;
	my $says = sub {
		my ($query, $expected, $what) = @_;
		is($node->safe_psql($database, $query), $expected, "$name: $what");
	};

	$says->(q{SELECT code FROM kavach_authorize('agt_b', 'run', 'x:y', 1)}, 'budget_exceeded', 'the budget is full, as it is in the old one');
	$node->safe_psql($database, q{SELECT kavach_create_agent('agt_new', 'new', permissions => '[{"resource": "*", "actions": ["*"]}]')});
	$says->(q{SELECT count(*) = count(DISTINCT permission_id) AND max(permission_id) FILTER (WHERE agent_id = 'agt_new') = max(permission_id) FROM kavach.permission},
		't', 'new permissions go on from the last');
	$says->(q{SET kavach.clock = '2026-03-01Z'; SELECT code FROM kavach_authorize('agt_new', 'run', 'x')}, 'allowed', 'and so do months');
	$says->(q{SET ROLE myapp; SELECT code FROM kavach_authorize('agt_new', 'run', 'x')}, 'allowed', 'what was granted is granted');
	my ($denied) = $node->psql($database, q{SET ROLE myapp; SELECT * FROM kavach_export()});
	isnt($denied, 0, "$name: and nothing else");
	foreach my $change (
		'UPDATE kavach.audit_log SET tokens_cost = 0',
		'UPDATE kavach.audit_log_2026_01 SET tokens_cost = 0',
		'DROP EXTENSION kavach',
		'ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_01')
	{
		my ($status, undef, $err) = $node->psql($database, "\\set VERBOSITY sqlstate\n$change");
		like($err, qr/42501/, "$name: still refused: $change");
	}
	return;
}

1;
