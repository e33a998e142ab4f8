# cancel.pl: a call may be cancelled at any point, and leaves nothing behind.
#
# First every place where a call can wait, ended in every way that there is; then cancels and timeouts at
# whatever point they meet a call. A call that was acknowledged is in the ledger, one that was cancelled is
# not, and counters and budgets agree with it.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;
use Time::HiRes qw(usleep);

my $node = PostgreSQL::Test::Cluster->new('cancel');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nmax_connections = 50");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_' || n, 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]') FROM unnest('{a,b,bad}'::text[]) n;
	SELECT kavach_create_agent('agt_rate', 'rob', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 100000}}]');
	SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_per_month": 1000000, "max_calls_per_day": 1000000}'),
	       kavach_create_policy(agent_id => 'agt_bad', limits => '{"max_tokens_cost_total": 1}', action => 'revoke'),
	       kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 10000000}');
	CREATE FUNCTION call(agent text, tokens bigint, request text DEFAULT NULL) RETURNS text LANGUAGE sql BEGIN ATOMIC
	  SELECT code || ' ' || audit_id FROM kavach_authorize(agent, 'run', 'x', tokens_cost => tokens, request_id => request); END;
	SELECT call('agt_a', 1), call('agt_rate', 1);
});
Judge::install($node);

my $watch = Session->new($node);

# In a lock, a latch, a sleep: wherever, but not with the client.
sub until_waiting
{
	my ($session) = @_;
	$watch->until_row("SELECT FROM pg_stat_activity WHERE state = 'active' AND wait_event_type IN ('Lock', 'IPC', 'Timeout', 'Extension') AND pid = $session->{pid}");
	return;
}

# ---- every wait, ended in every way ----

# A way takes the victim and its statement, which is going to wait, and ends it. It returns what the victim
# was told, and nothing where that is no longer there to be told.
sub cancelled_by
{
	my ($function, $victim, $sql) = @_;
	$victim->send($sql);
	until_waiting($victim);
	$watch->query("SELECT $function($victim->{pid})");
	return $victim->answer if $function eq 'pg_cancel_backend';
	$watch->until_gone($victim->{pid});
	$victim->die_at_once;
	return;
}

sub timed_out_by
{
	my ($setting, $victim, $sql) = @_;
	$victim->query("SET $setting = '100ms'");
	my $answer = $victim->query($sql);
	$victim->query("RESET $setting");
	return $answer;
}

my @ways = (
	[ 'pg_cancel_backend', \&cancelled_by, '57014' ],
	[ 'statement_timeout', \&timed_out_by, '57014' ],
	[ 'lock_timeout', \&timed_out_by, '55P03' ],
	[ 'pg_terminate_backend', \&cancelled_by ]);

my $number = 0;

# A wait: who makes it ('before' runs first, then 'holds' in a transaction that stays open until all is over),
# the statement that waits, and what it answers when it is repeated afterwards. 'first' is another statement
# that has come before it and waits for the holder itself, so that it waits for that one.
my %waits = (
	'a request that another transaction is making' => sub {
		my $request = 'request-' . ++$number;
		return (holds => "SELECT call('agt_a', 5, '$request')", waits => "SELECT call('agt_a', 5, '$request')", then => 'as held');
	},
	'an authorization that another is settling' => sub {
		my $id = $watch->query("SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 10)");
		my $settle = "SELECT usage_id, tokens_charged FROM kavach_record_usage('agt_a', 4, '$id')";
		return (holds => $settle, waits => $settle, then => 'as held');
	},
	'counters that are being loaded' => sub {
		return (before => 'SELECT kavach_reload_counters()', holds => 'LOCK TABLE kavach.audit_log_2026_03',
			waits => "SELECT call('agt_a', 1)", first => "SELECT call('agt_b', 1)", then => qr/^allowed/);
	},
	'counters of a rate that are being loaded' => sub {
		return (before => "SELECT kavach_reload_counters(); SELECT kavach_record_usage('agt_rate', 1)", holds => 'LOCK TABLE kavach.audit_log_2026_03',
			waits => "SELECT call('agt_rate', 1)", first => "SELECT call('agt_rate', 2)", then => qr/^allowed/);
	},
	'a partition that is being made' => sub {
		my $clock = sprintf "SET kavach.clock = '%d-03-10 12:00:00+00'", 2030 + 2 * ++$number;
		return (holds => 'LOCK TABLE kavach.audit_log IN SHARE UPDATE EXCLUSIVE MODE', prepares => $clock,
			waits => "SELECT call('agt_a', 1)", first => "SELECT call('agt_b', 1)", then => qr/^allowed/);
	},
	'an agent that is being revoked' => sub {
		$watch->query("SELECT kavach_restore_agent('agt_bad')");
		return (holds => "SELECT call('agt_bad', 5)", waits => "SELECT call('agt_bad', 5)", then => qr/^agent_revoked/);
	},
	'a reload of the counters' => sub {
		return (holds => 'SELECT kavach_reload_counters()', waits => "SELECT kavach_record_usage('agt_a', 1)", then => qr/recorded/);
	});

for my $wait (sort keys %waits)
{
	for (@ways)
	{
		my ($way, $end, $code) = @$_;
		next if $way eq 'lock_timeout' && $wait =~ /partition/;    # not where another process makes it
		my $name = "$wait, $way";
		my %case = $waits{$wait}->();
		my ($holder, $victim, $first) = map { Session->new($node) } 1 .. 3;
		$holder->query($case{before}) if $case{before};
		my $held = $holder->query("BEGIN; $case{holds}");
		my $prepares = $case{prepares} // 'SELECT 1';
		$_->query($prepares) for $victim, $first;
		if ($case{first})
		{
			$first->send($case{first});
			until_waiting($first);
		}

		my $answer = $end->($way, $victim, $case{waits});
		$code ? like($answer, qr/$code/, "$name: it is ended") : ($victim = Session->new($node))->query($prepares);

		if ($case{first})
		{
			$victim->send($case{waits});
			until_waiting($victim);
			$watch->query("SELECT pg_cancel_backend($first->{pid})");
			like($first->answer, qr/57014/, "$name: so is the one who was there first");
			until_waiting($victim);
			$holder->query('COMMIT');
			like($victim->answer, $case{then}, "$name: who comes after goes on");
		}
		else
		{
			$holder->query('COMMIT');
			my $then = $victim->query($case{waits});
			ref $case{then} ? like($then, $case{then}, "$name: asked again") : is($then, $held, "$name: asked again");
		}
		is(Judge::faults($node), '', "$name: nothing is left");
		$_->quit for $holder, $victim, $first;
	}
}

# ---- in a transaction that goes on, or does not ----

my $one = Session->new($node);
my $two = Session->new($node);
sub spent { return $node->safe_psql('postgres', q{SELECT sum(tokens_cost) FROM kavach.audit_log WHERE agent_id = 'agt_b'}) }

$two->query("BEGIN; SELECT call('agt_b', 3, 'held')");
my $before = spent();
$one->query("BEGIN; SELECT call('agt_b', 10); SAVEPOINT a; SET LOCAL statement_timeout = '20ms'");
like($one->query("SELECT call('agt_b', 3, 'held')"), qr/57014/, 'cancelled after a savepoint');
like($one->query("ROLLBACK TO a; SELECT call('agt_b', 20); COMMIT"), qr/^allowed/, 'the transaction goes on from there');
is(spent() - $before, 30, 'and charges the rest');
is($one->query(q{SET statement_timeout = '500ms'; DO $$ BEGIN
	PERFORM call('agt_b', 40);
	BEGIN PERFORM call('agt_b', 80); PERFORM call('agt_b', 3, 'held'); EXCEPTION WHEN query_canceled THEN NULL; END;
	PERFORM call('agt_b', 160); END $$; RESET statement_timeout}), '', 'cancelled in a block that catches it');
is(spent() - $before, 230, 'the block is not charged, what is around it is');
$two->query('COMMIT');
is(Judge::faults($node), '', 'nothing is left');

$before = spent();
for my $timeout ('idle_in_transaction_session_timeout', $node->pg_version >= 17 ? 'transaction_timeout' : ())
{
	$two = Session->new($node);
	$two->query("SET $timeout = '20ms'");
	$two->send("BEGIN; SELECT call('agt_b', 10)");
	$watch->until_gone($two->{pid});
	$two->die_at_once;
	is(Judge::faults($node), '', "a transaction ended by $timeout: nothing is left");
	is(spent() - $before, 0, 'nor charged');
}

# ---- at the commit ----

$node->safe_psql('postgres', q{
	CREATE TABLE t (); CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1000); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep()});
$one->query("BEGIN; SELECT call('agt_b', 10); INSERT INTO t DEFAULT VALUES");
$one->send('COMMIT');
until_waiting($one);
$watch->query("SELECT pg_cancel_backend($one->{pid})");
like($one->answer, qr/57014/, 'cancelled in its COMMIT, before it has committed');
is(Judge::faults($node), '', 'nothing is left');
is(spent() - $before, 0, 'nor charged');

# A standby that never answers: the row is durable here, and others do not see it until the wait is over.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;

# The checkpointer switches the waiting on, so that a few calls may still get through.
sub wait_for_standby
{
	my ($session) = @_;
	$session->query('SET synchronous_commit = local');    # kavach raises it
	for (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$before = spent();
		$session->send("SELECT call('agt_b', 10)");
		until ($session->answered)
		{
			return if $watch->query("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $session->{pid}") eq 't';
			usleep(10_000);
		}
		$session->answer;
	}
	die 'no call waits for a standby';
}

for my $function (qw(pg_cancel_backend pg_terminate_backend))
{
	$one = Session->new($node);
	wait_for_standby($one);
	is($watch->query("SELECT tokens_pending, pins > 0 FROM kavach.counters WHERE (scope, subject, period) = ('agent', 'agt_b', 'total')"),
		'10|t', 'a call that waits for a standby is pending');
	is(spent() - $before, 0, 'and nobody sees it yet');
	$watch->query("SELECT $function($one->{pid})");
	if ($function eq 'pg_cancel_backend')
	{
		like($one->answer, qr/^allowed/, "$function: it is answered, as it has committed here");
		$one->quit;
	}
	else
	{
		$watch->until_gone($one->{pid});
		$one->die_at_once;
	}
	is(Judge::faults($node), '', "$function: nothing is left");
	is(spent() - $before, 10, 'and it is charged');
}
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;    # which lets go who waits

# ---- wherever it is ----

# What a session was told are the rows that the ledger has of its agents: no more, no fewer.
sub judge_answers
{
	my ($what, $agents, @answers) = @_;
	my %told = map { /^told ([0-9a-f-]{36})/ ? ($1 => 1) : () } @answers;
	my $cancelled = grep { /57014/ } @answers;
	my @other = grep { !/^told |57014/ } @answers;
	my $rows = $node->safe_psql('postgres', "SELECT id FROM kavach.audit_log WHERE agent_id IN ($agents) ORDER BY id");
	is($rows, join("\n", sort keys %told), "$what: what was answered is in the ledger, and nothing else");
	is(join('; ', @other), '', "$what: nothing but answers and cancels");
	is(Judge::faults($node), '', "$what: nothing is left");
	return $cancelled;
}

# Timeouts from a millisecond up, until a call that has to load its counters gets through.
$node->safe_psql('postgres', q{
	SELECT count(call('agt_a', 1)) FROM generate_series(1, 20000);
	SELECT kavach_create_agent(id, 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 100000}}]') FROM unnest('{agt_sweep,agt_c,agt_d}'::text[]) id});
my (@answers, $timeout);
$one = Session->new($node);
for ($timeout = 1; @answers < 20 || $answers[-1] =~ /57014/; $timeout++)
{
	die 'no call gets through' if $timeout > 1000 * $PostgreSQL::Test::Utils::timeout_default;
	$watch->query('SELECT kavach_reload_counters()');
	push @answers, $one->query("SET statement_timeout = $timeout; SELECT 'told ' || audit_id FROM kavach_authorize('agt_sweep', 'run', 'x', tokens_cost => 1, request_id => 'r$timeout')") =~ s/^ERROR: *//r;
}
ok(judge_answers('timeouts', "'agt_sweep'", @answers) > 0, 'some calls were cancelled');
$one->quit;

# Cancels, as fast as they can be sent, at two sessions that share a budget, settle and load.
my @sessions = map { Session->new($node) } 1 .. 2;
my @agents = ('agt_c', 'agt_d');
my $cancelled = 0;
@answers = ();
for (my $round = 1; $cancelled < 100; $round++)
{
	die 'no call is cancelled' if $round > 100;
	for my $n (0 .. 1)
	{
		$sessions[$n]->send(join ";\n", map {
			my $request = "$round-$_";
			($_ % 20 ? () : 'SELECT kavach_reload_counters() IS NULL'),
			"SELECT 'told ' || audit_id FROM kavach_authorize('$agents[$n]', 'run', 'x', tokens_cost => 3, request_id => '$request')",
			"SELECT 'told ' || usage_id FROM kavach_record_usage('$agents[$n]', 2, request_id => '$request')" } 1 .. 100);
	}
	while (grep { !$_->answered } @sessions)
	{
		$watch->query('SELECT ' . join(', ', map { "pg_cancel_backend($_->{pid})" } @sessions));
	}
	for (@sessions)
	{
		my @lines = grep { $_ ne 'f' } split /\n/, $_->answer;
		$cancelled += grep { /57014/ } @lines;
		push @answers, @lines;
	}
}
# The last that was done may have been a reload: a call each brings the counters back that are to be judged.
push @answers, $sessions[$_]->query("SELECT 'told ' || audit_id FROM kavach_authorize('$agents[$_]', 'run', 'x', tokens_cost => 1)") for 0 .. 1;
judge_answers('cancels', "'agt_c', 'agt_d'", @answers);
note("$timeout timeouts, $cancelled cancels");
is($_->query("SELECT call('agt_a', 1)") =~ s/ .*//r, 'allowed', 'the sessions go on') for @sessions;
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'userlock'}), '0', 'no lock is left');
is(Judge::faults($node), '', 'nothing is left');

$_->quit for @sessions, $watch;
$node->stop;
done_testing();
