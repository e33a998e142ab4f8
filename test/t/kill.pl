# kill.pl: whatever befalls the worker, and wherever in a closing: no batch is lost, doubled or half folded, and counters
# are loaded with what the ledger has. KAVACH_KILL_ROUNDS: how often (each way in turn); KAVACH_SEED: with which points.
# KAVACH_SMALL_DISK: an empty folder of the server's user on a disk of some 200 MB, which is filled up; none is without it.
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
use Time::HiRes qw(usleep);

my $seed = $ENV{KAVACH_SEED} // 1;
my $disk = $ENV{KAVACH_SMALL_DISK};
my @ways = qw(terminate kill stop);
push @ways, 'fill' if defined $disk;
my $rounds = $ENV{KAVACH_KILL_ROUNDS} // @ways;
srand $seed;

my $node = PostgreSQL::Test::Cluster->new('kill');
$node->init(extra => defined $disk ? [ '--waldir', "$disk/wal" ] : []);
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'kavach'
kavach.clock = '2026-03-10 12:00:00+00'
kavach.batch_interval = '50ms'
restart_after_crash = on
track_commit_timestamp = on
timezone = 'UTC'
max_wal_size = 64MB
min_wal_size = 32MB});
$node->start;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# ---- points where a closing is held up, each by a lock of its own ----

my @tables = qw(usage_daily usage_monthly usage_scope batch open_authorization tail);
my @points = map { my $table = $_; map { [ $table, $_ ] } qw(BEFORE AFTER) } @tables;

sub prepare
{
	sql(q{CREATE EXTENSION kavach;
		SELECT kavach_create_months('2026-03-01', '2026-04-30');
		SELECT kavach_create_agent('agt_' || n, 'user_' || n % 2, permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(0, 4) n;
		SELECT kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 1000000000}');
		CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(TG_ARGV[0]::int); RETURN NULL; END'});
	sql("SET kavach.allow_alter = on; CREATE TRIGGER hold_$_ $points[$_][1] INSERT OR UPDATE ON kavach.$points[$_][0] FOR EACH STATEMENT EXECUTE FUNCTION hold($_)")
		for 0 .. $#points;
	Judge::install($node);
	return unless defined $disk;
	mkdir "$disk/tables";
	sql("CREATE TABLESPACE small LOCATION '$disk/tables'");
	sql("SET kavach.allow_alter = on; ALTER TABLE kavach.$_ SET TABLESPACE small") for @tables, 'audit_log_2026_03';
	return;
}

# ---- load ----

# Calls of two tokens, each third of them settled with none.
sub start_load
{
	my @clients;
	for my $client (1 .. 4)
	{
		my $script = '';
		for my $n (1 .. 20000)
		{
			$script .= "SELECT FROM kavach_authorize('agt_$client', 'run', 'x', 2);\n";
			$script .= "SELECT FROM kavach_authorize('agt_$client', 'run', 'x', 2, request_id => '\$\$ $n'), kavach_record_usage('agt_$client', 0, request_id => '\$\$ $n');\n"
				if $n % 3 == 0;
		}
		my $file = PostgreSQL::Test::Utils::tempdir() . "/load_$client.sql";
		append_to_file($file, $script) unless -e $file;
		push @clients, IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', $file ], '>', '/dev/null', '2>', '/dev/null');
	}
	ok($node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM kavach.batch_status}), 'calls are under way');
	return @clients;
}

sub end_load
{
	eval { $_->signal('TERM'); $_->finish } for @_;
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()}),
		'nothing is under way');
	return;
}

# ---- what befalls the worker ----

my $worker = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kavach worker'};

# Waits until a closing is held up at a point, and returns who closes, and who holds it up.
sub hold_up
{
	my ($point) = @_;
	my $holder = Session->new($node);
	$holder->query("SELECT pg_advisory_lock($point)");
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM ($worker AND wait_event = 'advisory') w") or return;
	return (sql($worker), $holder);
}

my $ballast = defined $disk ? "$disk/ballast" : undef;

# Takes what is left of the disk.
sub take_room
{
	open my $file, '>', $ballast or die "$ballast: $!";
	my $block = 'x' x 65536;
	1 while (syswrite($file, $block) // 0) == length $block;
	close $file;
	return;
}

my %befall = (
	terminate => sub {
		my ($pid, $holder) = @_;
		sql("SELECT pg_terminate_backend($pid)");
		$holder->quit;
	},
	kill => sub {
		my ($pid, $holder) = @_;
		kill 'KILL', $pid;
		$holder->quit;
		$node->poll_query_until('postgres', "SELECT NOT EXISTS ($worker AND pid = $pid)");
	},
	stop => sub {
		my ($pid, $holder) = @_;
		$node->stop('immediate');
		$holder->quit;
		$node->start;
	},
	fill => sub {
		my ($pid, $holder) = @_;
		my $log = -s $node->logfile;
		take_room();
		$holder->quit;
		for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			last if slurp_file($node->logfile, $log) =~ /No space left on device/;
			usleep(100_000);
		}
		like(slurp_file($node->logfile, $log), qr/No space left on device/, 'there is no room');
		unlink $ballast;
		eval { $node->stop('immediate', fail_ok => 1) };
		$node->start;
	});

# ---- what must hold ----

# As it is, while the worker may be closing: each statement is of one moment.
my $half = q{
WITH tail AS (SELECT coalesce((SELECT high FROM kavach.tail), -1) AS high, coalesce((SELECT open FROM kavach.tail), '{}') AS open),
     ledger AS (SELECT a.batch, count(*) AS rows, sum(a.tokens_cost) AS tokens_cost FROM kavach.audit_log a GROUP BY 1)
SELECT coalesce(b.batch, l.batch), b.rows, l.rows
  FROM (SELECT l.* FROM ledger l, tail t WHERE l.batch <= t.high AND l.batch <> ALL (t.open)) l
  FULL JOIN kavach.batch b USING (batch)
 WHERE (b.rows, b.tokens_cost) IS DISTINCT FROM (l.rows, l.tokens_cost::numeric)};

sub sums_agree
{
	my ($name) = @_;
	my $soak = "$ENV{KAVACH_SRC}/test/soak";
	is(sql($half), '', "$name: closed batches are whole, and no other is there");
	is(sql(slurp_file("$soak/usage.sql") . slurp_file("$soak/rollups.sql")), '', 'rollups and tail are the ledger, and so are rollups when all is closed');
	sql(q{SELECT count(kavach_authorize('agt_' || n, 'run', 'x', 1)) FROM generate_series(0, 4) n});
	is(sql('SELECT * FROM unread') . Judge::faults($node), '', 'and so are counters, budgets and reports');
	return;
}

prepare();
for my $round (1 .. $rounds)
{
	my $way = $ways[ ($round - 1) % @ways ];
	my $point = int rand @points;
	my @clients = start_load();
	my @held = hold_up($point);
	is(scalar @held, 2, "round $round: a closing is held up $points[$point][1] $points[$point][0]");
	$befall{$way}->(@held);
	end_load(@clients);
	sums_agree($way);
}
$node->stop;
done_testing();
