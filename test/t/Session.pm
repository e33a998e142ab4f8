# Session.pm: a psql that stays open, for tests with several sessions at once.
#
#   my $one = Session->new($node);              my $two = Session->new($node, 'other_database');
#   is($one->query('SELECT 1'), '1');           # errors are in the answer as well
#   $one->send('SELECT pg_sleep(1)');           # … and others go on meanwhile
#   is($one->answer, '');
package Session;
use strict;
use warnings;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep);

sub new
{
	my ($class, $node, $database) = @_;
	my $self = bless { in => '', out => '', err => '' }, $class;
	$self->{timeout} = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$self->{psql} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr($database // 'postgres') ],
		'<', \$self->{in}, '>', \$self->{out}, '2>&1', $self->{timeout});
	$self->query("SET client_min_messages = error");
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

sub send
{
	my ($self, $sql) = @_;
	$self->{in} .= "$sql;\n\\echo :end:\n";
	$self->{psql}->pump_nb;
	return $self;
}

sub answer
{
	my ($self) = @_;
	$self->{timeout}->start($PostgreSQL::Test::Utils::timeout_default);    # anew for each answer
	$self->{psql}->pump until $self->{out} =~ /^:end:\n/m;
	$self->{out} =~ s/^(.*?)\n?:end:\n//s or die;
	return $1;
}

# Whether the answer is there.
sub answered
{
	my ($self) = @_;
	$self->{psql}->pump_nb;
	return $self->{out} =~ /^:end:\n/m;
}

sub query
{
	my ($self, $sql) = @_;
	return $self->send($sql)->answer;
}

# Asks until there is a row, quickly.
sub until_row
{
	my ($self, $sql) = @_;
	for (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if $self->query("SELECT EXISTS ($sql)") eq 't';
		usleep(10_000);
	}
	die "gave up waiting for: $sql";
}

sub until_gone
{
	my ($self, $pid) = @_;
	return $self->until_row("SELECT 1 EXCEPT SELECT 1 FROM pg_stat_activity WHERE pid = $pid");
}

sub pid
{
	my ($self) = @_;
	return $self->{pid};
}

# The end of the client, without a farewell.
sub die_at_once
{
	my ($self) = @_;
	$self->{psql}->kill_kill;
	return;
}

sub quit
{
	my ($self) = @_;
	$self->{in} .= "\\q\n";
	eval { $self->{psql}->finish };
	return;
}

1;
