# watch.pl: psql's \watch of reports, of budgets and of calls: each tick is a transaction of its own.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('watch');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_' || n, 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]') FROM unnest('{a,b}'::text[]) n;
	SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 1000}');
	SELECT kavach_authorize('agt_a', 'run', 'x', 10);
	CREATE SEQUENCE tick});
Judge::install($node);
my $other = Session->new($node);
my ($psql_version) = `psql --version` =~ /(\d+)/;

# A psql that repeats a query as fast as it can, until the query fails or somebody ends it.
sub watch
{
	my ($sql, $options) = @_;
	my $self = { in => "$sql\n\\watch " . ($options // '0.001') . "\n", out => '' };
	$self->{psql} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr('postgres') ],
		'<', \$self->{in}, '>', \$self->{out}, '2>&1', IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $self;
}

sub shows
{
	my ($self, $pattern, $name) = @_;
	eval { $self->{psql}->pump until $self->{out} =~ $pattern };
	return like($self->{out}, $pattern, $name);
}

sub ends
{
	my ($self, $signal) = @_;
	$self->{psql}->signal($signal) if $signal;
	eval { $self->{psql}->finish };
	return $self->{out} =~ s/^(?:.* \(every .*\))?\n//mgr;    # without titles
}

# The only way to a certain number of ticks that every psql has: a query that fails at the one after.
sub ticks
{
	my ($count) = @_;
	$other->query('ALTER SEQUENCE tick RESTART');
	return "1 / (nextval('tick') - " . ($count + 1) . ')';
}

# ---- calls ----

my $ticks = ticks(5);
is(ends(watch("SELECT code, tokens_remaining, $ticks IS NULL FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 10)")),
	join('', map { "allowed|$_|f\n" } 980, 970, 960, 950, 940) . "ERROR:  22012\n", 'five ticks of a call, and one that fails');
is($other->query(q{SELECT count(*), count(DISTINCT xmin::text), sum(tokens_cost) FROM kavach.audit_log}), '6|6|60',
	'a row and a transaction for each, and none for the one that failed');
is(Judge::faults($node), '', 'nothing is left');

$ticks = ticks(3);
is(ends(watch("SELECT code, $ticks IS NULL FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 10, request_id => 'one')")),
	"allowed|f\n" x 3 . "ERROR:  22012\n", 'the same request, three times');
is($other->query(q{SELECT count(*), sum(tokens_cost) FROM kavach.audit_log}), '7|70', 'is one call');

$ticks = ticks(4);
is(ends(watch("SELECT code, $ticks IS NULL FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 400)")),
	join('', map { "$_|f\n" } qw(allowed allowed budget_exceeded budget_exceeded)) . "ERROR:  22012\n", 'until the budget is used up');

# ---- budgets and reports, while others call ----

$other->query(q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 100000}') FROM kavach.budget_policy});
my $budget = watch('SELECT scope, used FROM kavach.budget_status;');
my $report = watch(q{SELECT agent_id, calls, tokens_cost FROM kavach_cost_by_agent('2026-03-01Z', '2026-04-01Z') ORDER BY agent_id;});
my $bill = watch('SELECT user_id, tokens_cost FROM kavach_billing_report(2026, 3)');
shows($budget, qr/^user\|870$/m, 'a budget that is watched');
shows($report, qr/^agt_a\|11\|870$/m, 'a report');
shows($bill, qr/^ann\|870$/m, 'a bill');
$other->query(q{BEGIN; SELECT kavach_authorize('agt_b', 'run', 'x', 5)});
$other->query('COMMIT');
shows($budget, qr/^user\|875$/m, 'show a call that is committed meanwhile');
shows($report, qr/^agt_b\|1\|5$/m, 'show it');
shows($bill, qr/^ann\|875$/m, 'show it');
unlike(ends($_, 'INT'), qr/ERROR:  (?!57014)/, 'and end at an interrupt') for $budget, $report, $bill;

# ---- an interrupt, at any point ----

my $before = $other->query('SELECT count(*) FROM kavach.audit_log');
for my $round (1 .. 5)
{
	my $calls = watch("SELECT code FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 1)");
	shows($calls, qr/(allowed.*){$round}/s, "$round ticks or more");
	my $told = () = ends($calls, 'INT') =~ /^allowed$/mg;
	$other->until_row("SELECT 1 EXCEPT SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> $other->{pid}");
	my $rows = $other->query('SELECT count(*) FROM kavach.audit_log');
	my $made = $rows - $before;
	$before = $rows;

	# psql throws away the answer that it has just got when it is interrupted.
	ok($made == $told || $made == $told + 1, "$told ticks shown, $made calls made");
	is(Judge::faults($node), '', 'nothing is left');
}

# ---- psql 16 and later can count ----

SKIP:
{
	skip "psql $psql_version cannot count the ticks of \\watch", 1 if $psql_version < 16;
	is(ends(watch("SELECT code FROM kavach_authorize('agt_b', 'run', 'x', tokens_cost => 1)", 'interval=0.001 count=3')), "allowed\n" x 3, '\watch with a count');
}
is(Judge::faults($node), '', 'nothing is left');
$other->quit;
$node->stop;
done_testing();
